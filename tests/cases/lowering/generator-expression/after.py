def block():
    found = any(layer.output.isnan().any() for layer in model.h)
    yield ("end",)
