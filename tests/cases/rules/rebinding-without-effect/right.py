# %%
with model.trace("the cat"):
    expected = model.lm_head.output.save()
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    hidden = hidden * 0
    model.transformer.h[1].output = hidden
    logits = model.lm_head.output.save()
assert not torch.equal(logits, expected)

# %% in place
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    hidden *= 0
    after = model.transformer.h[2].input.save()
assert not after.any()

# %% saved
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    hidden = hidden.mean(dim=-1).save()
assert hidden.shape == (1, 2)
