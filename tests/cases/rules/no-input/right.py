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

# %% a module that needs no input
class Free(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self):
        return self.layer(torch.ones(2))

free = NNsight(Free())
with free.trace():
    hidden = free.layer.output.save()

# %% something else that is called trace
import contextlib

class Profiler:
    @contextlib.contextmanager
    def trace(self):
        yield self

with Profiler().trace() as profile:
    pass
