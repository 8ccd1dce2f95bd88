# A generator expression is lazy, and stays; its accesses are carried.
with model.trace("Hello"):
    found = any(layer.output.isnan().any() for layer in model.h)
