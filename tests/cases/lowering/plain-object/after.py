def block():
    yield ("write", (yield ("read", process, "output")) + 1, process, "output")
    yield ("end",)
