# Targets inside a tuple are set through the envoy, which waits by itself.
with model.trace("Hello"):
    model.transformer.h[5].output, n = h, 3
