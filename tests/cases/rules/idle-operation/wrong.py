# %% raises NotCalledError
attention = model.transformer.h[0].attn
with model.trace("the cat"):
    hidden = attention.source.self__upcast_and_reordered_attn_0.output  #> NNS205 14
