def block():
    yield ("block", tracer.invoke("Hello"), 0)
    yield ("block", tracer.invoke("World"), 1)
    yield ("end",)


def block_0():
    embeddings = (yield ("read", model.wte, "output"))
    yield ("bind", "embeddings", embeddings)
    yield ("end",)


def block_1():
    embeddings = yield ("name", "embeddings")
    yield ("write", embeddings, model.wte, "output")
    yield ("end",)
