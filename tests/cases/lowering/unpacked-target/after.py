def block():
    model.transformer.h[5].output, n = h, 3
    yield ("end",)
