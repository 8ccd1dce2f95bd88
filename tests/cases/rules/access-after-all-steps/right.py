# %%
with model.generate("the cat", max_new_tokens=3) as tracer:
    seen = [].save()
    for step in tracer.iter[:]:
        seen.append(model.transformer.h[1].output)
    tokens = tracer.result.save()

# %% a loop that is left
with model.generate("the cat", max_new_tokens=3) as tracer:
    for step in tracer.iter[:]:
        hidden = model.transformer.h[1].output.save()
        break
    logits = model.lm_head.output.save()

# %% the first step alone
with model.generate("the cat", max_new_tokens=3) as tracer:
    for step in tracer.iter[0]:
        hidden = model.transformer.h[1].output.save()
    logits = model.lm_head.output.save()

# %% behind the loop, in another invoke
with model.generate("the cat", max_new_tokens=3) as tracer:
    with tracer.invoke():
        for step in tracer.iter[:]:
            hidden = model.transformer.h[1].output.save()
    with tracer.invoke():
        logits = model.lm_head.output.save()
