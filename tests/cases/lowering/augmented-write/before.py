# The port is read, changed and written.
with model.trace("Hello"):
    model.transformer.h[5].output += v
    model.transformer.h[6].output[:, -1] *= 2
