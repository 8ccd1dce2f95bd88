def block(total):
    if total is _nns_missing: del total
    for layer in model.h:
        total += (yield ("read", layer, "output")).norm()
    yield ("end",)
