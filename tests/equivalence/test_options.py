"""Ways to begin a run: without a block, without an input, and options that only others know."""

import pytest
import torch
from torch import nn

import nnsight_dsl
from nnsight_dsl import CONFIG, LanguageModel, NNsight, NoInputError
from tests.models import GPT2, LONG, assert_same, bare, encoded


class Free(nn.Module):
    """A forward that needs nothing, and takes a number where one is given."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.linspace(-1, 1, 3))
        self.layer = nn.Linear(3, 3)

    def forward(self, repeats: int = 1) -> torch.Tensor:
        value = self.start
        for _ in range(repeats):
            value = self.layer(value)
        return value


class Closed(nn.Module):
    """A forward without any argument."""

    def __init__(self) -> None:
        super().__init__()
        self.free = Free()

    def forward(self) -> torch.Tensor:
        return self.free(2) * 2


@pytest.fixture
def free():
    torch.manual_seed(2)
    return Free().requires_grad_(False)


# without a block


def test_trace_without_a_block_returns_the_output(gpt2: LanguageModel) -> None:
    expected = bare(GPT2)(**encoded(LONG))
    assert_same(gpt2.trace(LONG, trace=False).logits, expected.logits)
    assert type(gpt2.trace(LONG, trace=False)) is type(expected)
    assert_same(NNsight(nn.Identity()).trace(torch.ones(2), trace=False), torch.ones(2))


# without an input


def test_a_module_that_takes_nothing_is_traced_without_an_input(free) -> None:
    torch.manual_seed(2)
    module = Closed().requires_grad_(False)
    model = NNsight(module)
    with model.trace():
        hidden = model.free.layer.output.save()
        model.free.output = model.free.output + 1
        result = model.output.save()
    assert_same(hidden, module.free.layer(module.free.start))
    assert_same(result, (module.free(2) + 1) * 2)
    assert_same(model.trace(trace=False), module())


def test_a_module_that_needs_nothing_is_traced_without_an_input(free) -> None:
    model = NNsight(free)
    with model.trace():
        once = model.output.save()
    with model.trace(repeats=3) as tracer:
        thrice = [].save()
        for _ in tracer.iter[:]:
            thrice.append(model.layer.output)
    with model.trace(2):
        twice = model.output.save()
    assert_same(once, free())
    assert_same(thrice[-1], free(3))
    assert len(thrice) == 3
    assert_same(twice, free(2))


def test_promptless_invokes_share_a_run_without_an_input(free) -> None:
    model = NNsight(free)
    with model.trace() as tracer:
        with tracer.invoke():
            late = model.output.save()
        with tracer.invoke():
            early = model.layer.output.save()
    assert_same(late, free())
    assert_same(early, free())


def test_a_scan_of_a_module_that_needs_nothing(free) -> None:
    model = NNsight(free)
    with model.scan():
        shape = model.output.shape
    assert shape == (3,)


def test_a_module_that_needs_an_input_is_not_traced_without_one(gpt2: LanguageModel) -> None:
    for model in (gpt2, NNsight(nn.Linear(3, 3)), NNsight(nn.Sequential(nn.Linear(3, 3)))):
        with pytest.raises(NoInputError, match="neither an input nor an invoke"):
            with model.trace():
                result = model.output.save()


# remote execution, which is not built


@pytest.mark.parametrize("options", [{"remote": True}, {"remote": "local"}, {"blocking": False}])
def test_options_of_remote_execution_say_that_it_is_not_built(gpt2: LanguageModel, options) -> None:
    opened = [
        lambda: gpt2.trace(LONG, **options),
        lambda: gpt2.generate(LONG, max_new_tokens=2, **options),
        lambda: gpt2.session(**options),
        lambda: gpt2.scan(LONG, **options),
        lambda: gpt2.edit(**options),
        lambda: gpt2.trace(LONG, trace=False, **options),
    ]
    for one in opened:
        with pytest.raises(NotImplementedError, match=r"remote execution.* not built"):
            one()


def test_remote_with_its_other_options_says_so_first(gpt2: LanguageModel) -> None:
    with pytest.raises(NotImplementedError, match="leave remote=True out"):
        with gpt2.trace(LONG, remote=True, blocking=False, backend=object()):
            logits = gpt2.lm_head.output.save()


def test_remote_false_is_a_run_as_ever(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG, remote=False):
        logits = gpt2.lm_head.output.save()
    assert_same(logits, bare(GPT2)(**encoded(LONG)).logits)


def test_an_argument_of_the_model_that_is_named_so_is_the_models() -> None:
    class Blocking(nn.Module):
        def forward(self, x, blocking=False):
            return x + 1 if blocking else x

    model = NNsight(Blocking())
    assert_same(model.trace(torch.ones(1), True, trace=False), torch.full((1,), 2.0))


@pytest.mark.parametrize("name", ["ndif_status", "is_model_running"])
def test_names_of_remote_execution_say_that_it_is_not_built(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'{name}' is about remote execution"):
        getattr(nnsight_dsl, name)


def test_a_key_of_remote_execution_says_that_it_is_not_built() -> None:
    with pytest.raises(AttributeError, match="set_default_api_key"):
        CONFIG.set_default_api_key("key")


# names


def test_language_model_is_a_transformers_model() -> None:
    assert issubclass(nnsight_dsl.LanguageModel, nnsight_dsl.TransformersModel)
