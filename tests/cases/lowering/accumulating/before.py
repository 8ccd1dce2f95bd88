# So does a name that is added to.
with model.trace("Hello"):
    for layer in model.h:
        total += layer.output.norm()
