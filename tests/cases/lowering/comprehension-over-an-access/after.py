def block():
    norms = [part.norm() for part in (yield ("read", model.h[0], "output"))]
    yield ("end",)
