# %% warns is its first row
with model.trace(["the cat", "a dog"]):
    model.transformer.h[1].output[0] = 0  #> NNS204 5
    after = model.transformer.h[2].input.save()
assert not after[0].any() and after[1].any(), "one row of the two"
