# %%
with model.trace("the cat"):
    hidden = model.transformer.h[0].mlp.c_fc.output
    hidden[:] = 0
    inner = model.transformer.h[0].mlp.c_proj.input.save()
assert not inner.any()

# %% something still uses it
with model.trace("the cat"):
    expected = model.lm_head.output.save()
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    inner = model.transformer.h[2].ln_1.output
    hidden[:] = 0
    logits = model.lm_head.output.save()
assert not torch.equal(logits, expected)

# %% the block itself uses it
with model.trace("the cat"):
    hidden = model.transformer.h[0].mlp.c_fc.output
    after = model.transformer.h[2].output
    hidden[:] = 0
    total = hidden.sum().save()
assert total == 0
