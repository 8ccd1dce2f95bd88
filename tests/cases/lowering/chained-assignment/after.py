def block():
    _nns_value = (yield ("read", model.transformer.h[4], "output")); h = _nns_value; yield ("write", _nns_value, model.transformer.h[5], "output"); del _nns_value
    yield ("end",)
