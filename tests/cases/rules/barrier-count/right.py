# %%
with model.trace() as tracer:
    barrier = tracer.barrier(2)
    with tracer.invoke("the cat"):
        hidden = model.transformer.h[1].output
        barrier()
    with tracer.invoke("a dog"):
        barrier()
        model.transformer.h[1].output = hidden

# %% in pairs
with model.trace() as tracer:
    barrier = tracer.barrier(2)
    for prompt in ["the cat", "a dog", "a bird", "the tree"]:
        with tracer.invoke(prompt):
            barrier()
