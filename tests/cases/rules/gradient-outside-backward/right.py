# %%
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    with model.lm_head.output.sum().backward():
        grad = hidden.grad.save()
assert grad.shape == (1, 2, 16)

# %% kept by the tensor itself
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    hidden.retain_grad()
    model.lm_head.output.sum().backward()
    grad = hidden.grad.save()
assert grad.shape == (1, 2, 16)
