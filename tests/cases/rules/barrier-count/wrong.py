# %% raises BarrierError
with model.trace() as tracer:
    barrier = tracer.barrier(3)  #> NNS602 15
    with tracer.invoke("the cat"):
        hidden = model.transformer.h[1].output
        barrier()
    with tracer.invoke("a dog"):
        barrier()
        model.transformer.h[1].output = hidden

# %% raises BarrierError
with model.trace() as tracer:
    barrier = tracer.barrier(2)  #> NNS602 15
    with tracer.invoke("the cat"):
        barrier()
    with tracer.invoke("a dog"):
        barrier()
    with tracer.invoke("a bird"):
        barrier()
