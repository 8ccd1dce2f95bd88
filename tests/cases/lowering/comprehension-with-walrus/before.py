# A walrus binds a name of the block, so the comprehension stays as it is and is carried.
with model.trace("Hello"):
    norms = [last := layer.output.norm() for layer in model.h]
