# A name that may be read before it is bound starts with its outer value, if there is one.
with model.trace("Hello"):
    total = total + model.h[0].output.norm()
