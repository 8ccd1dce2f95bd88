# Any object has a save; a method of its own wins.
with model.trace("Hello"):
    logits = model.lm_head.output[:, -1].save()
    values = list().save()
    best = max(values, key=lambda value: value.save())
    checkpoint.save("path")
