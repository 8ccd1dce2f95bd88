"""Minimised failures of messages: what is seen at first tries, and frames that are not the user's."""

import sys
import traceback

import pytest
import torch

from nnsight_dsl import InputError, InterventionArgumentError, InterventionError, LanguageModel, NNsight, NotRunningError
from nnsight_dsl import OutOfOrderError, PathError
from nnsight_dsl import intervene
from nnsight_dsl import sweep
from tests import models
from tests.models import GPT2, SHORT

LAYER = "transformer.h.0"


@pytest.fixture
def gpt2() -> LanguageModel:
    return models.wrapped(GPT2)


def users_frames(error: BaseException) -> bool:
    return {frame.filename for frame in traceback.extract_tb(error.__traceback__)} == {__file__}


def test_a_cache_of_one_module_by_its_path(gpt2):
    with gpt2.trace(SHORT) as tracer:
        by_path = tracer.cache(modules=LAYER)
        by_envoy = tracer.cache(modules=gpt2.transformer.h[0])
        by_module = tracer.cache(modules=[gpt2._module.transformer.h[0]])
        layers = tracer.cache(modules=gpt2.transformer.h)
    assert list(by_path) == list(by_envoy) == list(by_module) == [f"model.{LAYER}"]
    assert list(layers) == [f"model.transformer.h.{number}" for number in range(3)]


@pytest.mark.parametrize("modules", [3, [3], [None], [torch.nn.Linear(1, 1)]], ids=repr)
def test_a_cache_of_no_module_is_refused(gpt2, modules):
    with pytest.raises(InputError, match=r"modules= has .*; give paths \('transformer.h.0'\)"):
        with gpt2.trace(SHORT) as tracer:
            cache = tracer.cache(modules=modules)


def test_a_save_that_is_assigned_and_not_called(gpt2):
    with pytest.raises(InterventionError, match="the save of this Tensor is not called"):
        with gpt2.trace(SHORT):
            logits = gpt2.lm_head.output.save


def test_a_save_that_is_not_called_as_a_statement(gpt2):
    with pytest.raises(InterventionError, match=r"so nothing is saved; write .save\(\)"):
        with gpt2.trace(SHORT):
            logits = gpt2.lm_head.output
            logits.save


def test_a_save_that_is_not_called_beside_a_helper(gpt2):
    def helper(value):
        return gpt2.transformer.h[1].output + value

    with pytest.raises(InterventionError, match="the save of this Tensor is not called"):
        with gpt2.trace(SHORT):
            logits = max([gpt2.transformer.h[0].output], key=helper)
            logits.save


def test_a_list_has_no_save_that_could_be_meant(gpt2):
    with pytest.raises(InterventionError, match="the save of this list is not called"):
        with gpt2.trace(SHORT):
            found = [gpt2.lm_head.output]
            found.save


class Checkpoint:
    def __init__(self):
        self.saved = []

    def save(self, value):
        self.saved.append(value)


def test_a_save_of_the_users_own_is_a_value(gpt2):
    checkpoint = Checkpoint()
    with gpt2.trace(SHORT):
        write = checkpoint.save
        write(gpt2.transformer.h[0].output.shape)
        to_disk = torch.save
        checkpoint.save
    assert checkpoint.saved == [(1, 2, 16)]


@intervene
def scaled(model, layer: int, factor: float = 2.0):
    model.transformer.h[layer].output[:] *= factor
    return model.lm_head.output


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"layer": ["a"]}, "argument 'layer' of scaled is 'a', which is not an instance of int"),
        ({"layer": 3}, r"is 3, which is one value; give a list of values: {'layer': \[3\]}"),
        ({"layer": "ab"}, "is 'ab', which is one value"),
        ([1], r"over= is \[1\]; give a mapping of parameters to values"),
        ({"lyer": [1]}, "scaled has no parameter 'lyer'; it has 'model', 'layer', 'factor'"),
    ],
)
def test_what_a_sweep_cannot_go_over(gpt2, over, message):
    with pytest.raises(InterventionArgumentError, match=message) as caught:
        sweep(scaled, over=over, model=gpt2, prompt=SHORT)
    assert sys.gettrace() is not None or users_frames(caught.value)


def test_a_sweep_of_what_is_no_program_or_no_wrapper(gpt2):
    with pytest.raises(InterventionArgumentError, match="give a function under @intervene"):
        sweep(len, over={"layer": [1]}, model=gpt2, prompt=SHORT)
    with pytest.raises(InterventionArgumentError, match="model= is of type GPT2LMHeadModel; give"):
        sweep(scaled, over={"layer": [1]}, model=gpt2._module, prompt=SHORT)


ACCESSES = {
    "a path": (lambda model: model.transformer.hh, PathError),
    "a path by its text": (lambda model: model.get("transformer.hh"), PathError),
    "a name in brackets": (lambda model: model.transformer["hh"], PathError),
    "an index": (lambda model: model.transformer.h[9], IndexError),
    "an output": (lambda model: model.transformer.h[0].output, NotRunningError),
    "inputs": (lambda model: model.transformer.h[0].inputs, NotRunningError),
    "a skip": (lambda model: model.transformer.h[0].skip(1), NotRunningError),
    "a write": (lambda model: setattr(model.lm_head, "output", 1), NotRunningError),
    "a generation": (lambda model: model.generator.output, NotRunningError),
    "a call": (lambda model: model.lm_head(1, hook=True), NotRunningError),
    "a run without a block": (lambda model: model.trace(12345, trace=False), InputError),
}


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger has the trace function")
@pytest.mark.parametrize("name", ACCESSES)
def test_an_error_outside_of_a_block_shows_the_users_frames(gpt2, name):
    access, kind = ACCESSES[name]
    with pytest.raises(kind) as caught:
        access(gpt2)
    assert users_frames(caught.value)
    assert sys.gettrace() is None


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger has the trace function")
def test_a_question_leaves_no_trace_function(gpt2):
    assert not hasattr(gpt2, "nothing_there")
    assert getattr(gpt2.transformer, "nothing_there", 3) == 3
    assert sys.gettrace() is None
    assert sys._getframe().f_trace is None
    try:
        gpt2.nothing_there
    except AttributeError as error:
        caught = error
    assert users_frames(caught)
    assert sys.gettrace() is None
    assert sys._getframe().f_trace is None


def test_attention_weights_that_are_none_say_why(gpt2):
    with pytest.warns(UserWarning, match="None is saved here; attention weights are computed only"):
        with gpt2.trace(SHORT):
            weights = gpt2.transformer.h[0].attn.output[1].save()
    assert weights is None
    with pytest.raises(TypeError, match="'NoneType'") as caught:
        with gpt2.trace(SHORT):
            first = gpt2.transformer.h[0].attn.output[1][0].save()
    assert "write model.set_attn_implementation('eager')" in caught.value.__notes__[0]


def test_a_generation_that_comes_to_the_end_of_the_positions_says_so(gpt2):
    with pytest.raises(IndexError) as caught:
        with gpt2.generate([[3] * 62], max_new_tokens=6, min_new_tokens=6) as tracer:
            tokens = tracer.result.save()
    assert "positions at config.max_position_embeddings" in caught.value.__notes__[0]


def test_attention_weights_are_there_under_eager():
    model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
    model.set_attn_implementation("eager")
    with model.trace(SHORT):
        weights = model.transformer.h[0].attn.output[1].save()
    assert weights.shape == (1, 2, 2, 2)


class _Part(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_what_is_inside_of_a_module_that_has_returned_can_no_longer_come() -> None:
    calls: list[int] = []
    model = NNsight(torch.nn.Sequential(_Part(), torch.nn.Linear(2, 2)))
    model._module[1].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(
        OutOfOrderError,
        match=r"0\.unused\.output can no longer come, since 0 has already returned; move this",
    ):
        with model.trace(torch.ones(1, 2)):
            hidden = model[1].input.save()
            part = model[0].unused.output
    # at once, and not when the run is over
    assert calls == [] and hidden.shape == (1, 2)
