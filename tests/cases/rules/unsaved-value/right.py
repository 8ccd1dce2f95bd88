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
