# %% raises NoInputError
with model.trace():  #> NNS401 6
    logits = model.lm_head.output

# %% raises NoInputError
with model.generate(max_new_tokens=3) as tracer:  #> NNS401 6
    with tracer.invoke():
        logits = model.lm_head.output
