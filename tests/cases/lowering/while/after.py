def block(n):
    if n is _nns_missing: del n
    while (yield ("read", model.router, "output")).argmax() < n:
        n -= 1
    yield ("end",)
