# Wherever an expression may stand, a read may stand.
with model.trace("Hello"):
    difference = model.a.output[0] - model.b.output[:, -1].norm(dim=-1)
    print(model.c.output, *model.d.output, sep=model.e.output)
    total += model.f.output
