# %% misleads
with model.trace("the cat"):
    expected = model.lm_head.output.save()
with model.trace("the cat"):
    hidden = model.transformer.h[1].output.clone()
    hidden[:, -1] = 0  #> NNS305 5
    logits = model.lm_head.output.save()
assert torch.equal(logits, expected), "the model went on with its own value"

# %% misleads
with model.trace("the cat"):
    expected = model.lm_head.output.save()
with model.trace("the cat"):
    row = model.transformer.h[1].output[:, 0].detach().clone()
    row *= 2  #> NNS305 5
    row[:] = row + 1
    logits = model.lm_head.output.save()
assert torch.equal(logits, expected), "the model went on with its own value"
