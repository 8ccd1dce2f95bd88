# Deleting a port is left to the object; an index is deleted in the value.
with model.trace("Hello"):
    del thing.output
    del model.h[0].output[0]
