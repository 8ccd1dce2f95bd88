def block():
    text = f"norm {model.h[0].output.norm():.2f}"
    yield ("end",)
