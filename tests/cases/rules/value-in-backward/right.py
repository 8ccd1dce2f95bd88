# %%
with model.trace("the cat"):
    other = model.transformer.h[0].output
    hidden = model.transformer.h[1].output
    with model.lm_head.output.sum().backward():
        grad = hidden.grad.save()
