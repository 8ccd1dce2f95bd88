# A body on the line of its header.
with model.trace("Hello"): h = model.h[0].output; model.h[1].output = h
