# %% raises InvokeError
with model.trace("the cat") as tracer:  #> NNS404 6
    with tracer.invoke("a dog"):
        logits = model.lm_head.output
