# a trace in a session; the second branch is for the trace of some other library
with model.session():
    with model.trace(x) as tracer:
        hidden = model.layers[1].output
    print(hidden.shape)
