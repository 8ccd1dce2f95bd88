# The same loop, written with `with`.
with model.generate("Hello", max_new_tokens=3) as tracer:
    with tracer.iter[1:3] as step:
        logits.append(model.lm_head.output)
