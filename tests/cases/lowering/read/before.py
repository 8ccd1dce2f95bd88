# A read waits for the model: it becomes a request.
with model.trace("Hello"):
    h = model.transformer.h[3].output
    tokens = model.transformer.wte.input
    args, kwargs = model.transformer.h[0].inputs
