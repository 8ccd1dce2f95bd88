def block():
    with torch.no_grad():
        _nns_block = one = tracer.invoke("Hello")
        yield ("block", _nns_block, 0)
    yield ("end",)


def block_0():
    with lock:
        h = (yield ("read", model.h[0], "output"))
    yield ("end",)
