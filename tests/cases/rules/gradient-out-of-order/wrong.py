# %% raises GradientError
with model.trace("the cat"):
    early = model.transformer.h[0].output
    late = model.transformer.h[1].output
    with model.lm_head.output.sum().backward():
        first = early.grad
        second = late.grad  #> NNS107 18

# %% raises GradientError
with model.trace("the cat"):
    early = model.transformer.h[0].mlp.output
    late = model.transformer.h[0].output
    loss = model.lm_head.output.sum()
    with loss.backward():
        early.grad[:] = 0
        late.grad[:] = 0  #> NNS107 9
