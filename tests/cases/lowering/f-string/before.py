# Its quotes cannot be nested before Python 3.12, so it stays.
with model.trace("Hello"):
    text = f"norm {model.h[0].output.norm():.2f}"
