def block():
    yield ("block", tracer.invoke("Hello"), 0)
    yield ("block", tracer.invoke("World"), 1)
    yield ("end",)


def block_0():
    if flag:
        h = (yield ("read", model.h[0], "output"))
        yield ("bind", "h", h)
    else:
        h = None
        yield ("bind", "h", h)
    yield ("end",)


def block_1():
    h = yield ("name", "h")
    if h is not None:
        h = yield ("name", "h")
        yield ("write", h, model.h[1], "output")
    yield ("end",)
