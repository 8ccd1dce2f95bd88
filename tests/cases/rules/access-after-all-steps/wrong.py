# %% raises GenerationEndedError
with model.generate("the cat", max_new_tokens=3) as tracer:
    for step in tracer.iter[:]:
        hidden = model.transformer.h[1].output
    logits = model.lm_head.output  #> NNS105 14

# %% raises GenerationEndedError
with model.generate("the cat", max_new_tokens=3) as tracer:
    with tracer.all():
        model.transformer.h[1].output[:] = 0
    model.transformer.h[0].output[:] = 0  #> NNS105 5

# %% raises OutOfOrderError
with model.generate("the cat", max_new_tokens=3, min_new_tokens=3) as tracer:
    with tracer.iter[1:3]:
        hidden = model.transformer.h[1].output
    logits = model.lm_head.output  #> NNS105 14
