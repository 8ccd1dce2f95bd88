def block():
    with torch.no_grad():
        _nns_steps_0 = yield ("steps", tracer.iter[:])
        try:
            while (yield ("step", _nns_steps_0)):
                step = _nns_steps_0.value
                with lock:
                    logits.append((yield ("read", model.lm_head, "output")))
        finally:
            _nns_steps_0.close()
    yield ("end",)
