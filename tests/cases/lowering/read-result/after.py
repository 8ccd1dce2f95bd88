def block():
    tokens = _nns_save((yield ("read", tracer, "result")))
    yield ("end",)
