def block():
    with torch.no_grad():
        _nns_steps_0 = yield ("steps", tracer.iter[:])
        try:
            while (yield ("step", _nns_steps_0)):
                try:
                    step = _nns_steps_0.value
                    with lock:
                        logits.append((yield ("read", model.lm_head, "output")))
                except _nns_steps_0.over:
                    pass
        finally:
            _nns_steps_0.close()
    yield ("end",)
