# Sets, as lists.
with model.trace("Hello"):
    shapes = {layer.output.shape for layer in model.h}
