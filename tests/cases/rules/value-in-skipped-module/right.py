# %%
with model.trace("the cat"):
    model.transformer.h[1].skip(model.transformer.h[0].output)
    hidden = model.transformer.h[1].output.save()

# %% another invoke skips it
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        model.transformer.h[1].skip(model.transformer.h[0].output)
    with tracer.invoke("a dog"):
        inner = model.transformer.h[1].mlp.output.save()

# %% perhaps it is skipped
skips = False
with model.trace("the cat"):
    if skips:
        model.transformer.h[1].skip(model.transformer.h[0].output)
    inner = model.transformer.h[1].mlp.output.save()
