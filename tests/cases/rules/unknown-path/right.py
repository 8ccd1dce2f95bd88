# %%
with model.trace("the cat"):
    hidden = model.transformer.h[-1].attn.output.save()

# %% a name that this file gives
renamed = LanguageModel(module, tokenizer=tokenizer, rename={"mlp": "feedforward"})
with renamed.trace("the cat"):
    hidden = renamed.transformer.h[0].feedforward.output.save()

# %% a module that this file adds
model.probe = torch.nn.Identity()
with model.trace() as tracer:
    with tracer.invoke("the cat"):
        hidden = model.probe(model.transformer.h[1].output, hook=True)
    with tracer.invoke():
        probed = model.probe.output.save()

# %% another model
net = NNsight(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
with net.trace(torch.ones(1, 2)):
    hidden = net[0].output.save()
