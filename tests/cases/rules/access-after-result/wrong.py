# %% raises GenerationEndedError
with model.generate("the cat", max_new_tokens=2) as tracer:
    tokens = tracer.result
    logits = model.lm_head.output  #> NNS104 14

# %% raises GenerationEndedError
with model.generate("the cat", max_new_tokens=2) as tracer:
    tokens = model.generator.output
    model.transformer.h[0].output[:] = 0  #> NNS104 5

# %% raises OutOfOrderError
with model.trace("the cat") as tracer:
    output = tracer.result
    logits = model.lm_head.output  #> NNS104 14
