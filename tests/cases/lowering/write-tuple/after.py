def block():
    yield ("write", (hidden, cache), model.transformer.h[5], "output")
    yield ("end",)
