# An inner block becomes a program of its own; the outer one opens it.
with model.trace() as tracer:
    with tracer.invoke("Hello") as first:
        h = model.h[0].output.save()
    with tracer.invoke(["Hello", "World"]):
        model.h[0].output = 0
