# An index path goes along: the container may be a tuple, which is rebuilt, or a tensor.
with model.trace("Hello"):
    model.transformer.h[5].output[0] = h
    model.transformer.h[6].inputs[1]["attention_mask"] = mask
    model.transformer.h[7].output[:, -1, 2:] = 0
