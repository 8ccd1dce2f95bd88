def block():
    yield ("write", _nns_inplace.iadd((yield ("read", model.transformer.h[5], "output")), v), model.transformer.h[5], "output")
    yield ("element", _nns_inplace.imul((_nns_value := (yield ("read", model.transformer.h[6], "output")))[:, -1], 2), _nns_value, model.transformer.h[6], "output", _nns_key[:, -1]); del _nns_value
    yield ("end",)
