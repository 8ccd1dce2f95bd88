# The value comes first, as Python evaluates the right side of an assignment first.
with model.trace("Hello"):
    model.transformer.h[5].output = h * 2
    model.transformer.h[6].input = model.transformer.h[5].output
    model.transformer.h[7].inputs = ((h,), {})
