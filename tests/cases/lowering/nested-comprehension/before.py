# The inner one belongs to the function of the outer one.
with model.trace("Hello"):
    heads = [[h.output[..., i] for i in range(n)] for h in model.h]
