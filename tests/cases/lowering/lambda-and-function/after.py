def block():
    def norm_of(layer):
        return layer.output.norm()

    norms = list(map(lambda layer: layer.output.norm(), model.h))
    first = norm_of(model.h[0])
    yield ("end",)
