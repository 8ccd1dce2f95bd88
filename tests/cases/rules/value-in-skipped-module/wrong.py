# %% raises NotCalledError
with model.trace("the cat"):
    model.transformer.h[1].skip(model.transformer.h[0].output)
    inner = model.transformer.h[1].mlp.output  #> NNS407 13
