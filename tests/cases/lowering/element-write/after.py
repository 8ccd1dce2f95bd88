def block():
    yield ("element", h, (yield ("read", model.transformer.h[5], "output")), model.transformer.h[5], "output", _nns_key[0])
    yield ("element", mask, (yield ("read", model.transformer.h[6], "inputs")), model.transformer.h[6], "inputs", _nns_key[1], _nns_key["attention_mask"])
    yield ("element", 0, (yield ("read", model.transformer.h[7], "output")), model.transformer.h[7], "output", _nns_key[:, -1, 2:])
    yield ("end",)
