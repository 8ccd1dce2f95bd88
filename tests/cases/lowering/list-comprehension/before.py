# A comprehension with an access becomes a function, so that its scope stays its own.
with model.trace("Hello"):
    norms = [model.h[i].output.norm() for i in range(6, 9) if i != 7]
