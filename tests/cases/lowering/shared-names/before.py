# One invoke tells what it binds, a later one waits for it.
with model.trace() as tracer:
    with tracer.invoke("Hello"):
        embeddings = model.wte.output
    with tracer.invoke("World"):
        model.wte.output = embeddings
