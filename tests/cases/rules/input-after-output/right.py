# %%
with model.trace("the cat"):
    before = model.transformer.h[1].input.save()
    after = model.transformer.h[1].output.save()

# %%
with model.trace("the cat"):
    model.transformer.h[1].skip(model.transformer.h[1].input)
    after = model.transformer.h[1].output.save()

# %% objects of another kind
class Box:
    output = 1
    input = 2

box = Box()
with model.trace("the cat"):
    hidden = model.transformer.h[1].output.save()
    total = (box.output + box.input).save()

# %% the next layer's input
with model.trace("the cat"):
    after = model.transformer.h[0].output.save()
    before = model.transformer.h[1].input.save()
