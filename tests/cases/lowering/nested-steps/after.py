def block():
    _nns_steps_1 = yield ("steps", tracer.iter[:2])
    try:
        while (yield ("step", _nns_steps_1)):
            try:
                step = _nns_steps_1.value
                _nns_steps_0 = yield ("steps", model.expert.iter[:])
                try:
                    while (yield ("step", _nns_steps_0)):
                        try:
                            visit = _nns_steps_0.value
                            seen.append((step, visit, (yield ("read", model.expert, "output"))))
                        except _nns_steps_0.over:
                            pass
                finally:
                    _nns_steps_0.close()
            except _nns_steps_1.over:
                pass
    finally:
        _nns_steps_1.close()
    yield ("end",)
