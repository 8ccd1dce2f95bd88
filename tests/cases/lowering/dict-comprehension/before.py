# A display evaluates the key before the value.
with model.trace("Hello"):
    norms = {name: layer.output.norm() for name, layer in layers.items()}
