# What stands before the invoke is entered by the outer block, what stands behind it by the inner.
with model.trace() as tracer:
    with torch.no_grad(), tracer.invoke("Hello") as one, lock:
        h = model.h[0].output
