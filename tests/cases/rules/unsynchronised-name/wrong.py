# %% raises SharedNameError
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        for layer in model.transformer.h:
            hidden = layer.output
    with tracer.invoke("the cat"):
        model.lm_head.input = hidden  #> NNS601 31
