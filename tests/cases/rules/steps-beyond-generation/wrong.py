# %% warns the loop waited for step 2
with model.generate("the cat", max_new_tokens=2, min_new_tokens=2) as tracer:
    seen = [].save()
    for step in tracer.iter[:3]:  #> NNS501 17
        seen.append(model.lm_head.output)
assert len(seen) == 2

# %% warns the loop waited for step 5
with model.generate("the cat", max_new_tokens=3, min_new_tokens=3) as tracer:
    with tracer.iter[[0, 5]]:  #> NNS501 10
        logits = model.lm_head.output
