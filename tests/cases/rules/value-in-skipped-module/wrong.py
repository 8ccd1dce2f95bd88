# %% raises NotCalledError
with model.trace("the cat"):
    model.transformer.h[1].skip(model.transformer.h[0].output)
    inner = model.transformer.h[1].mlp.output  #> NNS407 13

# %% raises NotCalledError
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        model.transformer.h[1].skip(model.transformer.h[0].output)
        inner = model.transformer.h[1].mlp.output  #> NNS407 17
    with tracer.invoke("a dog"):
        logits = model.lm_head.output.save()
