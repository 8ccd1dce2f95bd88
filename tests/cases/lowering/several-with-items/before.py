# Items after the trace belong to its block.
with model.trace("Hello") as tracer, torch.no_grad(), lock as held:
    h = model.h[0].output
