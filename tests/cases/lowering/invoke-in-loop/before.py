# Each invoke starts from the names of its own round.
with model.trace() as tracer:
    for prompt in prompts:
        with tracer.invoke(prompt):
            results.append(model.lm_head.output[:, -1])
