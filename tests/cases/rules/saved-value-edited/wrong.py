# %% misleads
with model.trace("the cat"):
    before = model.transformer.h[1].output.save()  #> NNS302 14
    model.transformer.h[1].output[:] = 0
assert not before.any(), "the edit shows in what was saved before it"

# %% misleads
with model.trace("the cat"):
    before = nnsight_dsl.save(model.transformer.h[1].mlp.output[:, -1])  #> NNS302 31
    model.transformer.h[1].mlp.output[:, -1] = 0
assert not before.any()

# %% misleads
with model.trace("the cat"):
    before = model.transformer.h[1].output.save()  #> NNS302 14
    model.transformer.h[1].output += 1000
assert before.min() > 100
