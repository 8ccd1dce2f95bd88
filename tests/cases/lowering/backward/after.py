def block(gradient):
    if gradient is _nns_missing: del gradient
    hidden = (yield ("read", model.layers[1], "output"))
    _nns_left = yield ("backward", 0, (yield ("read", model, "output")).sum(), _nns_arguments(retain_graph=True))
    if "gradient" in _nns_left: gradient = _nns_left["gradient"]
    del _nns_left
    norm = _nns_save(gradient.norm())
    yield ("end",)


def block_0(hidden):
    if hidden is _nns_missing: del hidden
    gradient = (yield ("read", hidden, "grad"))
    yield ("element", 0, (yield ("read", hidden, "grad")), hidden, "grad", _nns_key[:])
    yield ("end",)
