# They are evaluated in the block, and carried as the function they belong to.
with model.trace("Hello"):
    @register(model.h[0].output)
    def scaled(value, by=model.h[1].output):
        return value * by
