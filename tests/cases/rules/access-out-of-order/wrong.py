# %% raises OutOfOrderError
with model.trace("the cat"):
    late = model.transformer.h[2].output
    early = model.transformer.h[0].mlp.output  #> NNS101 13

# %% raises OutOfOrderError
with model.trace("the cat"):
    logits = model.lm_head.output
    model.transformer.h[1].mlp.output[:] = 0  #> NNS101 5

# %% raises OutOfOrderError
layers = model.transformer.h
with model.generate("the cat", max_new_tokens=3, min_new_tokens=3) as tracer:
    seen = [].save()
    for step in tracer.iter[:]:
        seen.append(layers[-1].output)
        seen.append(layers[0].output)  #> NNS101 21

# %% raises OutOfOrderError
with model.trace("the cat"):
    inner = model.transformer.h[1].mlp.output
    outer = model.transformer.h[1].input  #> NNS101 13
