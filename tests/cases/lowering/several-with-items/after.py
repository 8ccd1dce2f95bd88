def block():
    with torch.no_grad(), lock as held:
        h = (yield ("read", model.h[0], "output"))
    yield ("end",)
