# Each loop has a cursor of its own.
with model.generate("Hello", max_new_tokens=3) as tracer:
    for step in tracer.iter[:2]:
        for visit in model.expert.iter[:]:
            seen.append((step, visit, model.expert.output))
