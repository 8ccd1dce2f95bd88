# %% bound once
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        hidden = model.transformer.h[1].output
    with tracer.invoke("a dog"):
        model.transformer.h[1].output = hidden
        logits = model.lm_head.output.save()

# %% a barrier says when
with model.trace() as tracer:
    barrier = tracer.barrier(2)
    with tracer.invoke("the cat"):
        for layer in model.transformer.h:
            hidden = layer.output
        barrier()
    with tracer.invoke("a dog"):
        barrier()
        model.transformer.ln_f.input = hidden
        logits = model.lm_head.output.save()
