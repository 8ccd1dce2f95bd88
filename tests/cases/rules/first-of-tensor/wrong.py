# %% warns is its first row
with model.trace(["the cat", "a dog"]):
    hidden = model.transformer.h[1].output[0].save()  #> NNS203 14
assert hidden.shape == (2, 16), "one row of the two"
