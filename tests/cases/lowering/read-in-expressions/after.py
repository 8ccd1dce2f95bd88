def block(total):
    if total is _nns_missing: del total
    difference = (yield ("read", model.a, "output"))[0] - (yield ("read", model.b, "output"))[:, -1].norm(dim=-1)
    print((yield ("read", model.c, "output")), *(yield ("read", model.d, "output")), sep=(yield ("read", model.e, "output")))
    total += (yield ("read", model.f, "output"))
    yield ("end",)
