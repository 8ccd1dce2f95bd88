"""Ten and more kinds of runs, as a user writes them; `kinds.py` says what each is given.

The text is compiled twice: with its blocks lowered beforehand, as an imported module's are, and
as it is, as a script's, whose blocks are lowered from the live frame.
"""

import torch

from nnsight_dsl import intervene, save, sweep


def one_block(model, x):
    with model.trace(x):
        hidden = model.layers[1].output
        model.layers[2].output = hidden * 2
        out = model.head.output.save()
    return out


def invokes(model, x):
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke("the cat"):
            kept = model.transformer.h[1].output
            barrier()
            first = model.lm_head.output.save()
        with tracer.invoke("a bird flew over"):
            barrier()
            model.transformer.h[2].output = model.transformer.h[2].output * 0.5
            second = model.lm_head.output.save()
    return first, second


def _helped(layer, seen):
    value = layer.output
    with torch.no_grad():
        seen.append(value * 2)
        return layer.output + 1


def _output_of(layer):
    return layer.output


class Holder:
    def __init__(self, model):
        self.model = model

    @property
    def first(self):
        with torch.no_grad():
            return self.model.layers[0].output


def carried(model, x):
    holder = Holder(model)
    with model.trace(x):
        seen = [].save()
        first = holder.first
        with torch.no_grad():
            value = _helped(model.layers[1], seen)
            last = list(map(_output_of, model.layers[2:4]))
        model.layers[4].output = last[1] + first
        out = save(model.head.output)
    return out, seen


def generation(model, x):
    with model.generate(x, max_new_tokens=3, do_sample=False) as tracer:
        hidden = [].save()
        for _ in tracer.iter[0:3]:
            hidden.append(model.transformer.h[1].output[:, -1])
            model.transformer.h[2].mlp.output[:] = 0
        tokens = tracer.result.save()
    return hidden, tokens


def backward(model, x):
    with model.trace(x):
        hidden = model.layers[1].output
        model.head.output.sum().backward()
        grad = model.layers[0].weight.grad.save()
    return grad.clone()


def backward_of_two(model, x):
    with model.trace(x):
        early = model.layers[0].output
        late = model.layers[3].output
        with model.head.output.sum().backward():
            second = late.grad.save()
            late.grad = second * 2
            first = early.grad.save()
    return first, second


def session(model, x):
    with model.session():
        with model.trace(x):
            hidden = model.layers[1].output
        with model.trace(x):
            model.layers[1].output = hidden * 3
            out = model.head.output.save()
    return out


def edit(model, x):
    with model.edit() as edited:
        model.layers[0].output[:] = 0
    with edited.trace(x):
        out = edited.head.output.save()
    return out, edited(x)


def scan(model, x):
    with model.scan(x):
        shape = model.layers[1].output.shape
        out = model.head.output.shape
    return [*shape], [*out]


def validated(model, x):
    with model.trace(x, validate=True):
        model.layers[1].output = model.layers[1].output * 2
        out = model.head.output.save()
    return out


def stopping(model, x):
    with model.trace(x, stop="auto"):
        out = model.layers[1].output.save()
    return out


def planned(model, x):
    with model.plan(x) as tracer:
        out = model.layers[1].output.save()
    return str(tracer.plan())


@intervene
def _scaled(model, layer: int, scale: float):
    model.layers[layer].output = model.layers[layer].output * scale
    return model.head.output


@intervene
def _from_value(model, layer: int, scale: float):
    # values decide, so that it cannot be known on fake tensors
    hidden = model.layers[layer].output
    if float(hidden.sum()) > 1e9:
        scale = 0.0
    model.layers[layer].output = hidden * scale
    return model.head.output


def swept(model, x):
    return list(sweep(_scaled, over={"layer": [0, 2], "scale": [0.0, 2.0]}, model=model, prompt=x))


def swept_in_training(model, x):
    return list(sweep(_scaled, over={"layer": [0, 2], "scale": [0.0]}, model=model, prompt=x))


def operations(model, x):
    with model.trace(x):
        model.first.source.torch_sigmoid_0.output = model.first.source.torch_sigmoid_0.output * 2
        inner = model.first.source.helper_0.source.value_mean_0.output.save()
        out = model.second.output.save()
    return inner, out


def fast_layers(model, x):
    with model.trace(x):
        hidden = model.layers[0].linear1.output.save()
    return hidden


def captured(model, x):
    with model.trace(x, output_hidden_states=True):
        model.transformer.h[1].output = model.transformer.h[1].output * 2
        states = model.output.hidden_states
        last = states[2].save()
    return last


def cached(model, x):
    with model.trace(x) as tracer:
        cache = tracer.cache()
        out = model.lm_head.output.save()
    return out, cache["model.transformer.h.1"].output


def checkpointed(model, x):
    with model.trace(x):
        model.layers[1].output = model.layers[1].output * 2
        loss = model.output.sum()
        with loss.backward():
            pass
    return model._module.layers[0].weight.grad.clone()


def skipped(model, x):
    with model.trace(x):
        hidden = model.layers[0].output
        model.layers[1].skip(hidden * 2)
        out = model.head.output.save()
    return out
