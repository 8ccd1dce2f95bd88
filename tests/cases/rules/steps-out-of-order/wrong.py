# %% raises OutOfOrderError
with model.generate("the cat", max_new_tokens=3, min_new_tokens=3) as tracer:
    for step in tracer.iter[2]:
        late = model.lm_head.output
    for step in tracer.iter[1]:  #> NNS106 17
        early = model.lm_head.output

# %% raises OutOfOrderError
with model.generate("the cat", max_new_tokens=4, min_new_tokens=4) as tracer:
    with tracer.iter[1:3]:
        late = model.lm_head.output
    with tracer.iter[[0, 3]]:  #> NNS106 10
        early = model.lm_head.output
