# %% raises GradientError
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    with model.lm_head.output.sum().backward():
        other = model.transformer.h[0].output  #> NNS405 17
