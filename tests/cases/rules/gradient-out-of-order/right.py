# %%
with model.trace("the cat"):
    early = model.transformer.h[0].output
    late = model.transformer.h[1].output
    with model.lm_head.output.sum().backward():
        second = late.grad.save()
        first = early.grad.save()

# %% one pass for each
with model.trace("the cat"):
    early = model.transformer.h[0].output
    late = model.transformer.h[1].output
    loss = model.lm_head.output.sum()
    with loss.backward(retain_graph=True):
        first = early.grad.save()
    with loss.backward():
        second = late.grad.save()
