# %% raises PathError
with model.trace("the cat"):
    hidden = model.transformer.h[0].attn.source.self_c_porj_0.output  #> NNS202 14

# %% raises PathError
attention = model.transformer.h[1].attn
with model.trace("the cat"):
    attention.source.attention_interface_1.output[0][:] = 0  #> NNS202 5
