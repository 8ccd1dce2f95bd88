# What is not called is looked at: only an object with a save of its own has one.
with model.trace("Hello"):
    logits = model.lm_head.output.save
    logits.save
    write: Any = checkpoint.save
    write(logits.save)
