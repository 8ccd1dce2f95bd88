def block():
    _nns_block = first = tracer.invoke("Hello")
    yield ("block", _nns_block, 0)
    yield ("block", tracer.invoke(["Hello", "World"]), 1)
    yield ("end",)


def block_0():
    h = _nns_save((yield ("read", model.h[0], "output")))
    yield ("end",)


def block_1():
    yield ("write", 0, model.h[0], "output")
    yield ("end",)
