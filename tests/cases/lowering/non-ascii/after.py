def block():
    größe = "→" + str((yield ("read", model.h[0], "output"))); ж = (yield ("read", model.h[1], "output"))
    yield ("end",)
