# %% misleads
with model.trace("the cat"):
    expected = model.lm_head.output.save()
with model.trace("the cat"):
    hidden = model.transformer.h[1].output
    hidden = hidden * 0  #> NNS303 5
    logits = model.lm_head.output.save()
assert torch.equal(logits, expected), "the model went on as if nothing had been written"
