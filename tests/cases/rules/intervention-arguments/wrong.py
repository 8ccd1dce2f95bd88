# %% raises InterventionArgumentError
@intervene
def scale(model, layer: int, factor: float = 2.0):
    model.transformer.h[layer].output *= factor

with model.trace("the cat"):
    scale(model, 1, facto=3.0)  #> NNS701 5

# %% raises InterventionArgumentError
@intervene
def shift(model, layer: int):
    model.transformer.h[layer].output += 1

with model.trace("the cat"):
    shift(model)  #> NNS701 5

# %% raises InterventionArgumentError
@intervene
def clear(model, layer: int):
    model.transformer.h[layer].output *= 0

ready = clear.bind(number=1)  #> NNS701 9
