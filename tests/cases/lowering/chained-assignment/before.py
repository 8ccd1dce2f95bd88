# The value is computed once, and assigned from left to right.
with model.trace("Hello"):
    h = model.transformer.h[5].output = model.transformer.h[4].output
