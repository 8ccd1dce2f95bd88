# %% raises OutOfOrderError
with model.trace("the cat"):
    after = model.transformer.h[1].output
    before = model.transformer.h[1].input  #> NNS103 14

# %% raises OutOfOrderError
with model.trace("the cat"):
    after = model.transformer.h[1].output
    model.transformer.h[1].skip(after)  #> NNS103 5

# %% raises OutOfOrderError
with model.trace("the cat"):
    for i in range(3):
        model.transformer.h[i].output[:] = 0
        arguments = model.transformer.h[i].inputs  #> NNS103 21
