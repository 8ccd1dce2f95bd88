# Any other `with` is itself.
with model.trace("Hello"):
    with torch.no_grad() as mode, open(path) as file:
        h = model.h[0].output
