# %%
with model.generate("the cat", max_new_tokens=3, min_new_tokens=3) as tracer:
    for step in tracer.iter[:2]:
        early = model.lm_head.output.save()
    for step in tracer.iter[2]:
        late = model.lm_head.output.save()

# %% the same step again, further down in the model
with model.generate("the cat", max_new_tokens=3, min_new_tokens=3) as tracer:
    for step in tracer.iter[1]:
        early = model.transformer.h[0].output.save()
    for step in tracer.iter[1]:
        late = model.transformer.h[1].output.save()
