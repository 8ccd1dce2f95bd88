# So does the body of a class.
with model.trace("Hello"):
    class Probe:
        value = model.h[0].output
