# They are functions of their own and stay; their accesses are carried.
with model.trace("Hello"):
    def norm_of(layer):
        return layer.output.norm()

    norms = list(map(lambda layer: layer.output.norm(), model.h))
    first = norm_of(model.h[0])
