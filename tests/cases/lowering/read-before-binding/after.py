def block(total):
    if total is _nns_missing: del total
    total = total + (yield ("read", model.h[0], "output")).norm()
    yield ("end",)
