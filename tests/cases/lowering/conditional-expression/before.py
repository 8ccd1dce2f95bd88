# Only the branch that is taken waits.
with model.trace("Hello"):
    h = model.h[0].output if flag else model.h[1].output
    k = first or model.h[2].output
