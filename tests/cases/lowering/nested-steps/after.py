def block():
    _nns_steps_1 = yield ("steps", tracer.iter[:2])
    try:
        while (yield ("step", _nns_steps_1)):
            step = _nns_steps_1.value
            _nns_steps_0 = yield ("steps", model.expert.iter[:])
            try:
                while (yield ("step", _nns_steps_0)):
                    visit = _nns_steps_0.value
                    seen.append((step, visit, (yield ("read", model.expert, "output"))))
            finally:
                _nns_steps_0.close()
    finally:
        _nns_steps_1.close()
    yield ("end",)
