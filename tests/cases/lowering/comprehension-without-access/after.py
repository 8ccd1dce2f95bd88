def block():
    squares = [i * i for i in range(3)]
    h = (yield ("read", model.h[0], "output"))
    yield ("end",)
