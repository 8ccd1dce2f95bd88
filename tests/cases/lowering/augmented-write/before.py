# The port is read, changed and written.
with model.trace("Hello"):
    model.transformer.h[5].output += v
    model.transformer.h[6].output[:, -1] *= 2
    model.transformer.h[7].output[0][:, i] += v
    model.transformer.h[8].output[f()][i] -= g()
