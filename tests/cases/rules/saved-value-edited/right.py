# %%
with model.trace("the cat"):
    before = model.transformer.h[1].output.clone().save()
    model.transformer.h[1].output[:] = 0
assert before.any()

# %% a replacement leaves what was there alone
with model.trace("the cat"):
    before = model.transformer.h[1].output.save()
    model.transformer.h[1].output = before * 0
assert before.any()

# %% another part
with model.trace("the cat"):
    before = model.transformer.h[1].output[:, 0].save()
    model.transformer.h[1].output[:, 1] = 0
assert before.any()

# %% saved after the edit
with model.trace("the cat"):
    model.transformer.h[1].output[:] = 0
    after = model.transformer.h[1].output.save()
assert not after.any()

# %% an element of a tuple is replaced
with model.trace("the cat"):
    before = model.transformer.h[1].attn.output[0].save()
    model.transformer.h[1].attn.output[0] = before * 0
assert before.any()
