def block():
    del thing.output
    del (yield ("read", model.h[0], "output"))[0]
    yield ("end",)
