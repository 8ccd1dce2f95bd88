def block():
    h: torch.Tensor = (yield ("read", model.h[0], "output"))
    n: int
    yield ("end",)
