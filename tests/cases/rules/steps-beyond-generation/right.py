# %%
with model.generate("the cat", max_new_tokens=3, min_new_tokens=3) as tracer:
    seen = [].save()
    for step in tracer.iter[:3]:
        seen.append(model.lm_head.output)
assert len(seen) == 3

# %% left in time
with model.generate("the cat", max_new_tokens=3, min_new_tokens=3) as tracer:
    for step in tracer.iter[:9]:
        if step == 2:
            logits = model.lm_head.output.save()
            break
