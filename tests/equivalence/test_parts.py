"""Runs of a part of a model, beside direct calls of the submodule with hand-written hooks."""

from __future__ import annotations

import importlib
import runpy

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import nn

import nnsight_dsl
from nnsight_dsl import LanguageModel, NNsight, NotRunningError, OutOfOrderError
from tests import models
from tests.models import assert_same

HIDDEN = torch.linspace(-1, 1, 48).reshape(1, 3, 16)


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())


def seen_inside(block: nn.Module, name: str) -> torch.Tensor:
    """Return what a hook sees of a submodule in a direct call of a block."""
    seen: list[torch.Tensor] = []
    hook = block.get_submodule(name).register_forward_hook(
        lambda module, args, output: seen.append(output)
    )
    block(HIDDEN)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("number", range(3))
def test_each_block_alone(model, number):
    layer = model.transformer.h[number]
    with layer.trace(HIDDEN):
        inside = layer.mlp.c_fc.output.save()
        output = layer.output.save()
    block = model.module.transformer.h[number]
    assert_same([inside, output], [seen_inside(block, "mlp.c_fc"), block(HIDDEN)])


def test_an_edit_inside_is_followed_by_what_comes_after(model):
    layer = model.transformer.h[1]
    with layer.trace(HIDDEN):
        layer.ln_2.output[:] = 0
        output = layer.output.save()
    block = model.module.transformer.h[1]
    hook = block.ln_2.register_forward_hook(lambda module, args, output: output * 0)
    expected = block(HIDDEN)
    hook.remove()
    assert_same(output, expected)


def test_the_run_stops_where_the_block_does(model):
    layer = model.transformer.h[1]
    block, calls = layer._module, []
    for name in ("ln_1", "attn", "mlp"):
        block.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    # the call that finds where the forward can stop calls no hooks of the user
    with layer.trace(HIDDEN, stop="auto"):
        early = layer.ln_1.output.save()
    assert calls == ["ln_1"]
    with layer.trace(HIDDEN, stop="auto"):
        late = model.transformer.h[1].attn.output[0].save()
    assert calls == ["ln_1", "ln_1", "attn"]
    assert_same([early, late], [block.ln_1(HIDDEN), block.attn(block.ln_1(HIDDEN))[0]])


def test_the_run_of_a_wrapped_part_stops_by_envoys_of_the_whole(model):
    part, calls = NNsight(model.transformer.h[1]), []
    part._module.attn.register_forward_hook(lambda *_: calls.append("attn"))
    with part.trace(HIDDEN, stop="auto"):
        early = model.transformer.h[1].ln_1.output.save()
    assert calls == []
    assert_same(early, part._module.ln_1(HIDDEN))


class Editing(nn.Module):
    """A module that edits what its first layer has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.relu(self.first(x)))


def test_a_part_runs_on_where_it_edits_the_value_later():
    model = NNsight(nn.Sequential(nn.Identity(), Editing()))
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    with model[1].trace(x, stop="auto"):
        hidden = model[1].first.output.save()
    assert_same(hidden, torch.relu(model._module[1].first(x)))


def test_a_plan_and_a_log_have_the_paths_of_the_model(model):
    layer = model.transformer.h[1]
    with layer.plan(HIDDEN) as tracer:
        inside = layer.mlp.output.save()
    plan = tracer.plan()
    with layer.trace(HIDDEN, log=True) as tracer:
        inside = layer.mlp.output.save()
    assert [one.location for one in plan.served] == ["transformer.h.1.mlp.output"]
    assert [one.location for one in tracer.log] == ["transformer.h.1.mlp.output"]
    assert plan.held == inside.numel() * inside.element_size()


def test_gradients_are_those_of_the_submodule(model):
    hidden = HIDDEN.clone().requires_grad_()
    with model.transformer.h[0].trace(hidden):
        entered = model.transformer.h[0].input
        inside = model.transformer.h[0].mlp.output
        with (model.transformer.h[0].output ** 2).sum().backward():
            after = inside.grad.save()
            before = entered.grad.save()
    block = model.module.transformer.h[0]
    output = block(hidden)
    (expected,) = torch.autograd.grad((output**2).sum(), hidden)
    assert_same([after, before], [2 * output.detach(), expected])


# what is not of the part


def outside_of_head(model):
    with model.lm_head.trace(HIDDEN):
        model.transformer.h[0].output.save()


def write_outside_of_head(model):
    with model.lm_head.trace(HIDDEN):
        model.transformer.h[0].output = HIDDEN


def outside_in_a_scan(model):
    with model.lm_head.scan(HIDDEN):
        model.transformer.h[0].output.save()


def outside_in_an_edited_copy(model):
    with model.lm_head.edit() as edited:
        edited.output = edited.output * 2
    with edited.trace(HIDDEN):
        model.transformer.h[0].output.save()


@pytest.mark.parametrize(
    "run", [outside_of_head, write_outside_of_head, outside_in_a_scan, outside_in_an_edited_copy]
)
def test_a_place_outside_is_said_to_be_outside_of_the_part(model, run):
    with pytest.raises(
        NotRunningError,
        match=r"transformer\.h\.0\.output is not in lm_head, the part of the model that this run",
    ):
        run(model)


def test_what_is_around_the_part_is_outside_of_it(model):
    with pytest.raises(NotRunningError, match=r"transformer\.output is not in transformer\.h\.0,"):
        with model.transformer.h[0].trace(HIDDEN):
            model.transformer.output.save()


def test_another_model_is_another_model(model):
    other = NNsight(nn.Linear(3, 3))
    with pytest.raises(NotRunningError, match="belongs to another model"):
        with model.lm_head.trace(HIDDEN):
            other.output.save()


def test_errors_have_the_paths_of_the_model(model):
    with pytest.raises(OutOfOrderError, match=r"^lm_head\.input has already passed"):
        with model.lm_head.trace(HIDDEN):
            model.lm_head.output.save()
            model.lm_head.input.save()
    layer = model.transformer.h[1]
    with pytest.raises(
        OutOfOrderError, match=r"^transformer\.h\.1\.mlp\.output can .* since transformer\.h\.1 has"
    ):
        with layer.trace(HIDDEN):
            layer.output.save()
            model.transformer.h[1].mlp.output.save()


# names of a module, and weights


class Named(nn.Module):
    """A module with attributes that are named as what runs a part is."""

    def __init__(self) -> None:
        super().__init__()
        self.trace, self.edit, self.last = nn.Linear(3, 3), 7, nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.trace(x))


def test_a_modules_own_names_come_first():
    model, x = NNsight(nn.Sequential(Named())), torch.ones(1, 3)
    named = model._module[0]
    with model.trace(x):
        by_name = model[0].trace.output.save()
        in_brackets = model[0]["trace"].output.save()
    with model[0]["trace"].trace(x):
        alone = model[0]["trace"].output.save()
    assert model[0].edit == 7
    assert_same([by_name, in_brackets, alone], [named.trace(x)] * 3)
    with NNsight(model[0]).trace(x):
        whole = model[0].last.output.save()
    assert_same(whole, named(x))


def test_the_weights_are_loaded_first(tmp_path):
    models.new_gpt2().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path))
    with model.transformer.h[1].scan(HIDDEN):
        shape = model.transformer.h[1].mlp.c_fc.output.shape
    assert shape == (1, 3, 64)
    assert all(one.is_meta for one in model._module.parameters())
    with model.transformer.h[1].trace(HIDDEN):
        output = model.transformer.h[1].output.save()
    assert_same(output, models.new_gpt2().transformer.h[1](HIDDEN))


# entries

TEXT = """
from tests import models
from nnsight_dsl import LanguageModel
import torch

hidden = torch.linspace(-1, 1, 48).reshape(1, 3, 16)
model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
layer = model.transformer.h[1]
with layer.trace(hidden):
    layer.mlp.output = layer.mlp.output * 2
    result = model.transformer.h[1].output.save()
"""


def with_doubled_mlp() -> torch.Tensor:
    block = models.new_gpt2().transformer.h[1]
    block.mlp.register_forward_hook(lambda module, args, output: output * 2)
    return block(HIDDEN)


def test_a_script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(TEXT)
    names = runpy.run_path(str(path), run_name="__main__")
    assert_same(names["result"], with_doubled_mlp())


def test_an_imported_module(tmp_path, monkeypatch):
    (tmp_path / "program_of_a_part.py").write_text(TEXT)
    monkeypatch.syspath_prepend(str(tmp_path))
    with nnsight_dsl.install_import_hook("program_of_a_part"):
        module = importlib.import_module("program_of_a_part")
    assert_same(module.result, with_doubled_mlp())


def test_a_cell():
    shell = InteractiveShell()
    shell.run_cell(TEXT).raise_error()
    assert_same(shell.user_ns["result"], with_doubled_mlp())
