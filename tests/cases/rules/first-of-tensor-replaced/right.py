# %%
with model.trace(["the cat", "a dog"]):
    attention = model.transformer.h[1].attn.output[0]
    model.transformer.h[1].attn.output[0] = attention * 0
    model.transformer.h[1].output = model.transformer.h[1].output * 0
    after = model.transformer.h[2].input.save()
assert not after.any()
