def block():
    barrier = tracer.barrier(2)
    yield ("block", tracer.invoke("Hello"), 0)
    yield ("block", tracer.invoke("World"), 1)
    yield ("end",)


def block_0(barrier):
    if barrier is _nns_missing: del barrier
    for layer in model.h:
        h = (yield ("read", layer, "output"))
        yield ("bind", "h", h)
        barrier()
    yield ("end",)


def block_1(barrier):
    if barrier is _nns_missing: del barrier
    for layer in model.h:
        barrier()
        h = yield ("name", "h")
        yield ("write", h, layer, "output")
    yield ("end",)
