# %%
def hidden(prompt):
    with model.trace(prompt):
        found = model.transformer.h[1].output.save()
    return found

hidden("the cat")

# %% a function in a block returns as ever
with model.trace("the cat"):
    def norm(layer):
        return layer.output.norm()

    total = norm(model.transformer.h[1]).save()

# %% a session of something else
import contextlib

class Database:
    @contextlib.contextmanager
    def session(self):
        yield self

def row():
    with Database().session() as session:
        return session

row()
