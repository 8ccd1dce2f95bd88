# In a loop, a barrier says which of the values is meant.
with model.trace() as tracer:
    barrier = tracer.barrier(2)
    with tracer.invoke("Hello"):
        for layer in model.h:
            h = layer.output
            barrier()
    with tracer.invoke("World"):
        for layer in model.h:
            barrier()
            layer.output = h
