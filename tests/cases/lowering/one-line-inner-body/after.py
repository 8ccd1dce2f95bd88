def block():
    if flag: yield ("write", 0, model.h[1], "output")
    yield ("end",)
