# What the whole run returns is a value like others.
with model.generate("Hello", max_new_tokens=3) as tracer:
    tokens = tracer.result.save()
