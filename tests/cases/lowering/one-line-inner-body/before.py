# A write on the line of an inner header.
with model.trace("Hello"):
    if flag: model.h[1].output = 0
