# %%
@intervene
def scale(model, layer: int, factor: float = 2.0):
    model.transformer.h[layer].output *= factor

ready = scale.bind(layer=1)
options = {"factor": 3.0}
with model.trace("the cat"):
    ready(model)
    scale(model, 2, **options)
