# %%
with model.trace("the cat"):
    inner = model.transformer.h[0].attn.c_proj.output.save()
    outer = model.transformer.h[0].output.save()

# %%
with model.trace("the cat"):
    for layer in model.transformer.h:
        inner = layer.mlp.output.save()
        outer = layer.output.save()

# %% the input of a module comes before what is inside it
with model.trace("the cat"):
    before = model.transformer.h[1].input.save()
    inner = model.transformer.h[1].mlp.output.save()

# %% caught where it is expected
with model.trace("the cat"):
    outer = model.transformer.h[0].output.save()
    try:
        inner = model.transformer.h[0].mlp.output.save()
    except nnsight_dsl.OutOfOrderError:
        inner = None

# %% the result of a generation comes after its modules
with model.generate("the cat", max_new_tokens=2) as tracer:
    logits = model.output.save()
    tokens = model.generator.output.save()
