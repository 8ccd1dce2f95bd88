# Columns count characters here and bytes there.
with model.trace("Ünïcödé"):
    größe = "→" + str(model.h[0].output); ж = model.h[1].output
