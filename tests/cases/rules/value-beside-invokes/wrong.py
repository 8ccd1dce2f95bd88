# %% raises InvokeError
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        hidden = model.transformer.h[1].output
    logits = model.lm_head.output  #> NNS403 14

# %% raises InvokeError
with model.generate(max_new_tokens=2) as tracer:
    tokens = tracer.result  #> NNS403 14
    with tracer.invoke("the cat"):
        hidden = model.transformer.h[1].output
