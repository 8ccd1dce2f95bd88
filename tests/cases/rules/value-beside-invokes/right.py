# %%
with model.trace() as tracer:
    count = 3
    with tracer.invoke("the cat"):
        hidden = model.transformer.h[1].output.save()
    with tracer.invoke():
        logits = model.lm_head.output.save()
