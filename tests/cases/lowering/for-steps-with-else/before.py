# Leaving the loop closes it; `break`, `continue` and `else` are those of Python.
with model.generate("Hello", max_new_tokens=3) as tracer:
    for step in tracer.all():
        if step == 2:
            break
    else:
        h = model.lm_head.output
