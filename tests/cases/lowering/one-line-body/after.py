def block():
    h = (yield ("read", model.h[0], "output")); yield ("write", h, model.h[1], "output")
    yield ("end",)
