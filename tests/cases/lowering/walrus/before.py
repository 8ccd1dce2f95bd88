# A walrus binds a name of the block.
with model.trace("Hello"):
    if (h := model.h[0].output) is not None:
        model.h[1].output = (n := 3) * h
