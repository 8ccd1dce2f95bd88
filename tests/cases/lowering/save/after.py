def block():
    logits = _nns_save((yield ("read", model.lm_head, "output"))[:, -1])
    values = _nns_save(list())
    best = max(values, key=lambda value: _nns_save(value))
    checkpoint.save("path")
    yield ("end",)
