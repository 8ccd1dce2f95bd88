# %%
with model.trace("the cat"):
    early = model.transformer.h[0].mlp.output.save()
    late = model.transformer.h[2].output.save()

# %% another invoke has an order of its own
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        late = model.transformer.h[2].output.save()
    with tracer.invoke():
        early = model.transformer.h[0].output.save()

# %% the next step begins anew
with model.generate("the cat", max_new_tokens=2, min_new_tokens=2) as tracer:
    late = model.transformer.h[2].output.save()
    tracer.next()
    early = model.transformer.h[0].output.save()

# %% only one of two branches is taken
late = False
with model.trace("the cat"):
    if late:
        hidden = model.transformer.h[2].output.save()
    else:
        hidden = model.transformer.h[1].output.save()
    early = model.transformer.h[1].output.shape

# %% an index that is computed
numbers = [0, 2]
with model.trace("the cat"):
    first = model.transformer.h[numbers[0]].output.save()
    later = model.transformer.h[numbers[1]].output.save()
