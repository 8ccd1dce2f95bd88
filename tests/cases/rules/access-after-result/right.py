# %%
with model.generate("the cat", max_new_tokens=2) as tracer:
    logits = model.lm_head.output.save()
    tokens = tracer.result.save()
    same = model.generator.output.save()

# %%
with model.generate(max_new_tokens=2) as tracer:
    with tracer.invoke("the cat"):
        tokens = tracer.result.save()
    with tracer.invoke("a dog"):
        logits = model.lm_head.output.save()
