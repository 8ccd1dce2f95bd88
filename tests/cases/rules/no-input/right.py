# %%
with model.trace("the cat"):
    logits = model.lm_head.output.save()

# %%
with model.trace(input_ids=torch.tensor([[3, 4]])):
    logits = model.lm_head.output.save()

# %%
with model.generate(max_new_tokens=3) as tracer:
    for prompt in ["the cat", "a dog"]:
        with tracer.invoke(prompt):
            logits = model.lm_head.output.save()

# %% something else that is called trace
import contextlib

class Profiler:
    @contextlib.contextmanager
    def trace(self):
        yield self

with Profiler().trace() as profile:
    pass
