def block():
    match (yield ("read", model.h[0], "output")):
        case (hidden, *_) if (yield ("read", model.h[1], "output")) is not None:
            h = hidden
        case hidden:
            h = hidden
    yield ("end",)
