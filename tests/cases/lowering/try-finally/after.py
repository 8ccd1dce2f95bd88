def block():
    try:
        h = (yield ("read", model.h[0], "output"))
    except ValueError as error:
        h = (yield ("read", model.h[1], "output"))
    finally:
        yield ("write", 0, model.h[2], "output")
    yield ("end",)
