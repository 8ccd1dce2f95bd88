def block():
    _nns_steps_0 = yield ("steps", tracer.all())
    try:
        while (yield ("step", _nns_steps_0)):
            step = _nns_steps_0.value
            if step == 2:
                break
        else:
            h = (yield ("read", model.lm_head, "output"))
    finally:
        _nns_steps_0.close()
    yield ("end",)
