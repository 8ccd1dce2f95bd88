# %%
with model.trace("the cat"):
    hidden = model.transformer.h[0].attn.source.self_c_proj_0.output.save()

# %% the operations of what an operation calls
with model.trace("the cat"):
    attention = model.transformer.h[0].attn.source.attention_interface_0
    inner = attention.source.attn_output_transpose_0.output.save()
