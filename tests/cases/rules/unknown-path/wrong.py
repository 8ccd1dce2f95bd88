# %% raises PathError
with model.trace("the cat"):
    hidden = model.transformer.h[0].attention.output  #> NNS201 14

# %% raises IndexError
with model.trace("the cat"):
    hidden = model.transformer.h[3].output  #> NNS201 14

# %% raises PathError
with model.trace("the cat"):
    for layer in model.transformer.h:
        layer.mpl.output[:] = 0  #> NNS201 9

# %% raises PathError
with model.trace("the cat"):
    logits = model.lmhead.output  #> NNS201 14
