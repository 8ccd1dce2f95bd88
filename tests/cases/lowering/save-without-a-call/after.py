def block():
    logits = _nns_save_of((yield ("read", model.lm_head, "output")))
    _nns_save_of(logits)
    write: Any = _nns_save_of(checkpoint)
    write(logits.save)
    yield ("end",)
