# The first iterable is evaluated outside of the comprehension.
with model.trace("Hello"):
    norms = [part.norm() for part in model.h[0].output]
