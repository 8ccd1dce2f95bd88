"""Minimised failures that were found and mended, each as it was met."""

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight
from tests.models import assert_same


def test_a_name_that_a_function_beside_the_block_rebinds_is_looked_up(model: NNsight, x):
    count = 0

    def tick():
        nonlocal count
        count += 1

    with model.trace(x):
        tick()
        hidden = model.layers[0].output
        tick()
        seen = [count].save()
    assert seen == [2]
    assert count == 2


def test_a_block_in_a_class_body_sees_the_names_of_the_function(model: NNsight, x, module):
    class Found:
        with model.trace(x):
            hidden = model.layers[0].output.save()

    assert_same(Found.hidden, module.layers[0](x))


def test_an_exchanged_module_is_the_one_that_is_called(model: NNsight, x, module):
    assert model.head.weight.shape[0] == 3
    module.head = nn.Linear(4, 7)
    assert model.head.weight.shape[0] == 7
    with model.trace(x):
        logits = model.head(model.layers[0].output).save()
    assert_same(logits, module.head(module.layers[0](x)))


def test_a_lazy_module_becomes_what_it_becomes():
    module = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    model = NNsight(module)
    x = torch.ones(1, 3)
    with model.trace(x):
        hidden = model[0].output.save()
    assert type(module[0]) is nn.Linear
    assert_same(hidden, module[0](x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_module_that_torchscript_has_compiled_is_a_leaf():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    module = nn.Sequential(nn.Linear(3, 3), scripted, nn.Linear(4, 2))
    model = NNsight(module)
    x = torch.ones(1, 3)
    assert "(1)" in repr(model)
    with torch.no_grad(), model.trace(x) as tracer:
        cache = tracer.cache().save()
        inner = model[1].output.save()
        model[1].output = inner * 2
        last = model[2].output.save()
    assert_same(inner, scripted(module[0](x)))
    assert_same(last, module[2](inner * 2))
    assert_same(cache["model.1"].output, inner * 2)
    assert len(model[1]) == 0


def test_a_class_with_slots_is_tapped(x):
    class Slotted(nn.Linear):
        __slots__ = ("extra",)

    module = nn.Sequential(Slotted(4, 4), nn.Linear(4, 2))
    model = NNsight(module)
    with model.trace(x):
        hidden = model[0].output.save()
    assert type(module[0]) is Slotted
    assert_same(hidden, module[0](x))


def test_the_fast_path_of_torchs_transformer_is_left_for_the_run():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    seen = []
    handle = layer.self_attn.register_forward_hook(lambda _m, _a, output: seen.append(output[0]))
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        layer(x)
        handle.remove()
        model = NNsight(layer)
        with model.trace(x):
            hidden = model.self_attn.output[0].save()
    torch.testing.assert_close(hidden, seen[0])
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_loop_without_a_space_before_for_is_lowered(model: NNsight, module, x):
    with model.trace(x):
        # fmt: off
        sums = [layer.output.sum()for layer in model.layers].save()
        # fmt: on
    assert len(sums) == len(module.layers)


def test_an_object_in_a_list_may_read_in_its_operators(model: NNsight, module, x):
    class Residual:
        def __init__(self, layer):
            self._layer = layer

        def __add__(self, other):
            return self._layer.output + other

    held = [Residual(model.layers[0])]
    with model.trace(x):
        total = (held[0] + 1).save()
    assert_same(total, module.layers[0](x) + 1)


def test_an_edit_that_asks_all_of_a_tensor_is_made_in_each_step():
    from tests import models

    gpt2 = models.wrapped(models.GPT2)
    with gpt2.edit() as edited:
        hidden = gpt2.transformer.h[1].output
        if torch.isfinite(hidden).all():  # no tracer.iter[:] here
            gpt2.transformer.h[1].output = hidden**2
    with models.hooked(models.bare(models.GPT2), {"transformer.h.1": lambda output: output**2}):
        expected = models.bare(models.GPT2).generate(
            **models.encoded(models.LONG), max_new_tokens=4, do_sample=False
        )
    with edited.generate(models.LONG, max_new_tokens=4, do_sample=False) as tracer:
        tokens = tracer.result.save()
    assert_same(tokens, expected)


def test_a_skipped_module_is_in_the_cache(model: NNsight, x):
    with model.trace(x) as tracer:
        cache = tracer.cache(modules=[model.layers[1]])
        model.layers[1].skip(torch.ones(2, 4))
        result = model.output.save()
    assert_same(cache["model.layers.1"].output, torch.ones(2, 4))


def test_an_element_of_torchs_own_sequence_is_replaced(x):
    class Pool(nn.Module):
        def forward(self, x):
            return torch.max(x, dim=1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = Pool()

        def forward(self, x):
            return self.pool(x).values * 2

    model = NNsight(Net())
    with model.trace(x):
        model.pool.output[0] = torch.ones(2)
        result = model.output.save()
    assert_same(result, torch.full((2,), 2.0))


def test_an_option_that_is_an_argument_of_the_model_is_refused(x):
    class Net(nn.Module):
        def forward(self, x, log=False):
            return x

    with pytest.raises(TypeError, match="option of the trace and an argument"):
        NNsight(Net()).trace(x, log=True)


def test_a_blocks_own_scratch_value_is_no_stale_edit():
    from tests import models

    gpt2 = models.wrapped(models.GPT2)
    with gpt2.trace() as tracer:
        with tracer.invoke("the cat"):
            hidden = gpt2.transformer.h[0].output
            gpt2.transformer.h[0].output = hidden * 2
            hidden += 1
            logits = gpt2.lm_head.output.save()
        with tracer.invoke("the dog"):
            other = gpt2.lm_head.output.save()
    assert logits.shape == other.shape


def test_an_auxiliary_module_survives_the_loading():
    from nnsight_dsl import LanguageModel

    model = LanguageModel("examples/models/city-facts")
    model.sae = nn.Linear(128, 128)
    with model.trace("Hello"):
        hidden = model.transformer.h[4].output
        rebuilt = model.sae(hidden, hook=True).save()
    assert rebuilt.shape == hidden_shape(model)


def hidden_shape(model):
    with model.scan("Hello"):
        shape = model.transformer.h[4].output.shape
    return shape
