# %% misleads
with model.trace("the cat"):
    expected = model.lm_head.output.save()
with model.trace("the cat"):
    hidden = model.transformer.h[0].mlp.c_fc.output
    kept = model.transformer.h[2].output
    hidden[:] = 0  #> NNS304 5
    logits = model.lm_head.output.save()
assert torch.equal(logits, expected), "the edit came when the value had been used"
