# A tuple without parentheses is one value.
with model.trace("Hello"):
    model.transformer.h[5].output = hidden, cache
