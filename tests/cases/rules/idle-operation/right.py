# %%
with model.trace("the cat"):
    hidden = model.transformer.h[0].attn.source.attention_interface_0.output.save()

# %% what runs depends on how the prompts are padded
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        hidden = model.transformer.source.self_wpe_0.output.save()
    with tracer.invoke("a red bird"):
        logits = model.lm_head.output.save()
