# %%
with model.trace(["the cat", "a dog"]):
    attention = model.transformer.h[1].attn.output[0].save()
    hidden = model.transformer.h[1].output.save()
    first_row = model.lm_head.output[0].save()
assert hidden.shape == attention.shape == (2, 2, 16)
