# %% warns not a leaf Tensor
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    grad = nnsight_dsl.save(hidden.grad)  #> NNS406 29
assert grad is None
