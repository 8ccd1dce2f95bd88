def block():
    with torch.no_grad() as mode, open(path) as file:
        h = (yield ("read", model.h[0], "output"))
    yield ("end",)
