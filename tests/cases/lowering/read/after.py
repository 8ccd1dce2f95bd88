def block():
    h = (yield ("read", model.transformer.h[3], "output"))
    tokens = (yield ("read", model.transformer.wte, "input"))
    args, kwargs = (yield ("read", model.transformer.h[0], "inputs"))
    yield ("end",)
