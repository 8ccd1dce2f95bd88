# %% raises OutOfOrderError
with model.trace("the cat"):
    outer = model.transformer.h[0].output
    inner = model.transformer.h[0].attn.c_proj.output  #> NNS102 13

# %% raises OutOfOrderError
with model.trace("the cat"):
    for layer in model.transformer.h:
        outer = layer.output
        inner = layer.mlp.output  #> NNS102 17

# %% raises OutOfOrderError
with model.trace("the cat"):
    whole = model.output
    model.lm_head.output[:] = 0  #> NNS102 5

# %% raises OutOfOrderError
block = model.transformer.h[1]
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        hidden = block.output
        block.mlp.c_fc.output = hidden  #> NNS102 9

# %% raises OutOfOrderError
@intervene
def inner(model):
    outer = model.transformer.h[0].output
    return model.transformer.h[0].mlp.output  #> NNS102 12

inner.run(model, "the cat")
