# %%
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        hidden = model.transformer.h[1].output.save()
    with tracer.invoke("a dog"):
        logits = model.lm_head.output.save()
