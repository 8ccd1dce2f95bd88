# %% raises InvokeError
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        hidden = model.transformer.h[1].output
        with tracer.invoke("a dog"):  #> NNS402 14
            logits = model.lm_head.output
