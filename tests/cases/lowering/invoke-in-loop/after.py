def block():
    for prompt in prompts:
        yield ("block", tracer.invoke(prompt), 0)
    yield ("end",)


def block_0():
    results.append((yield ("read", model.lm_head, "output"))[:, -1])
    yield ("end",)
