def block():
    h = (yield ("read", model.h[0], "output")) if flag else (yield ("read", model.h[1], "output"))
    k = first or (yield ("read", model.h[2], "output"))
    yield ("end",)
