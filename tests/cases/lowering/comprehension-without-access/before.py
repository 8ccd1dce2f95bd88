# What touches no model value stays as it is.
with model.trace("Hello"):
    squares = [i * i for i in range(3)]
    h = model.h[0].output
