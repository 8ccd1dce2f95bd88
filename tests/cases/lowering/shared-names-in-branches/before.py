# A name is told after each statement that binds it.
with model.trace() as tracer:
    with tracer.invoke("Hello"):
        if flag:
            h = model.h[0].output
        else:
            h = None
    with tracer.invoke("World"):
        if h is not None:
            model.h[1].output = h
