def block():
    yield ("write", h * 2, model.transformer.h[5], "output")
    yield ("write", (yield ("read", model.transformer.h[5], "output")), model.transformer.h[6], "input")
    yield ("write", ((h,), {}), model.transformer.h[7], "inputs")
    yield ("end",)
