# a backward pass is a program of its own; what it binds is the block's
with model.trace(x):
    hidden = model.layers[1].output
    with model.output.sum().backward(retain_graph=True):
        gradient = hidden.grad
        hidden.grad[:] = 0
    norm = gradient.norm().save()
