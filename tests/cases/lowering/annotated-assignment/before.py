# An annotation changes nothing.
with model.trace("Hello"):
    h: torch.Tensor = model.h[0].output
    n: int
