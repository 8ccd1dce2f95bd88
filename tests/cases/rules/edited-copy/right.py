# %%
with model.trace("the cat"):
    expected = model.lm_head.output.save()
with model.trace("the cat"):
    hidden = model.transformer.h[1].output.clone()
    hidden[:, -1] = 0
    model.transformer.h[1].output = hidden
    logits = model.lm_head.output.save()
assert not torch.equal(logits, expected)

# %% the value itself, and a view of it
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    first = hidden[:, 0].detach()
    first[:] = 0
    after = model.transformer.h[2].input.save()
assert not after[:, 0].any()

# %% saved
with model.trace("the cat"):
    hidden = model.transformer.h[1].output.clone()
    hidden[:, -1] = 0
    hidden.save()
assert not hidden[:, -1].any()

# %% read by a function
with model.trace("the cat"):
    hidden = model.transformer.h[1].output.clone()

    def total():
        return hidden.sum()

    hidden[:] = 0
    found = total().save()
assert found == 0

# %% handed on
with model.trace("the cat"):
    hidden = model.transformer.h[1].output.clone()
    alias = hidden
    hidden[:] = 0
    alias.save()
assert not alias.any()
