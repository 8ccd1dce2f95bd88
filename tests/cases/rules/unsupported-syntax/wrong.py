# %% raises UnsupportedSyntaxError
def hidden(prompt):
    with model.trace(prompt):
        return model.transformer.h[1].output  #> NNS801 9

hidden("the cat")

# %% raises UnsupportedSyntaxError
for prompt in ["the cat", "a dog"]:
    with model.trace(prompt):
        logits = model.lm_head.output
        break  #> NNS801 9
