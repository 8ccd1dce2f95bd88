# The header waits for its step to begin, so that n steps run n bodies.
with model.generate("Hello", max_new_tokens=3) as tracer:
    for step in tracer.iter[1:3]:
        logits.append(model.lm_head.output)
