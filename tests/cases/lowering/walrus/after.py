def block():
    if (h := (yield ("read", model.h[0], "output"))) is not None:
        yield ("write", (n := 3) * h, model.h[1], "output")
    yield ("end",)
