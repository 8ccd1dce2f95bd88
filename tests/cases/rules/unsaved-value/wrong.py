# %% raises NameError
with model.trace("the cat"):
    hidden = model.transformer.h[1].output  #> NNS301 5
print(hidden.shape)

# %% misleads
total = torch.zeros(2, 16)
with model.trace("the cat"):
    total = total + model.transformer.h[1].mlp.output[0]  #> NNS301 5
assert not total.any(), "the name has the value that it had before"

# %% raises NameError
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        logits = model.lm_head.output[:, -1]  #> NNS301 9
    with tracer.invoke("a dog"):
        other = model.lm_head.output[:, -1].save()
difference = logits - other

# %% misleads
sums = 0
for prompt in ("the cat", "a dog"):
    with model.trace(prompt):
        sums += model.transformer.h[1].mlp.output.sum()  #> NNS301 9
assert sums == 0, "the name has the value that it had before"
