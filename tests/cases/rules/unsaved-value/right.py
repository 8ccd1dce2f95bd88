# %%
with model.trace("the cat"):
    hidden = model.transformer.h[1].output.save()
    size = nnsight_dsl.save(hidden.shape)
    cached = [].save()
    cached.append(hidden)
print(hidden.shape, size, cached)

# %% saved after it was bound
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    other = hidden
    other.save()
print(hidden.shape)

# %% all names leave a scan
with model.scan("the cat"):
    width = model.transformer.h[1].output.shape[-1]
assert width == 16

# %% a trace in a session leaves its names to the session
with model.session():
    with model.trace("the cat"):
        hidden = model.transformer.h[1].output
    with model.trace("a dog"):
        model.transformer.h[1].output[:] = hidden
        logits = model.lm_head.output.save()
print(logits)

# %% bound again before it is used
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    kept = hidden.sum().save()
hidden = 3
print(hidden, kept)

# %% saved by a function
def keep(value):
    return value.save()

with model.trace("the cat"):
    hidden = keep(model.transformer.h[1].output)
print(hidden.shape)

# %% an edit of a tensor from outside of the block
totals = torch.zeros(2, 16)
with model.trace("the cat"):
    totals += model.transformer.h[1].mlp.output[0].detach()
assert totals.any()

# %% a list from outside of the block
found = []
with model.trace("the cat"):
    found += [model.transformer.h[1].mlp.output]
assert len(found) == 1

# %% a sum that is used in the block only
count = 0
with model.trace("the cat"):
    count += model.transformer.h[1].mlp.output.shape[0]
    kept = (model.lm_head.output * count).save()
count = 3
assert kept.shape and count
