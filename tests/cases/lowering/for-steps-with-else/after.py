def block():
    _nns_steps_0 = yield ("steps", tracer.all())
    try:
        while (yield ("step", _nns_steps_0)):
            try:
                step = _nns_steps_0.value
                if step == 2:
                    break
            except _nns_steps_0.over:
                pass
        else:
            h = (yield ("read", model.lm_head, "output"))
    finally:
        _nns_steps_0.close()
    yield ("end",)
