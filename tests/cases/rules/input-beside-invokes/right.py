# %%
with model.trace("the cat") as tracer:
    with tracer.invoke():
        logits = model.lm_head.output.save()

# %%
with model.trace() as tracer:
    with tracer.invoke("a dog"):
        logits = model.lm_head.output.save()
