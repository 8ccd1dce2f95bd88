"""Modules at two places, weights that are tied, and modules that are called several times."""

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight, OutOfOrderError
from tests import models
from tests.models import GPT2, LONG, assert_same, bare, encoded, hooked, recorded


def _seeded(new):
    with torch.random.fork_rng():
        torch.manual_seed(13)
        return new()


class Again(nn.Module):
    """A cell that is called once for each item of a sequence, and a head."""

    def __init__(self, times: int = 4) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)
        self.act = nn.Tanh()
        self.head = nn.Linear(4, 3)
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.act(self.cell(x))
        return self.head(x)


class Tied(nn.Module):
    """One linear layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.between = nn.ReLU()
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(x)))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.fixture
def module() -> Again:
    return _seeded(Again)


@pytest.fixture
def model(module: Again) -> NNsight:
    return NNsight(module)


@pytest.fixture
def visits(module: Again, x: torch.Tensor) -> list[torch.Tensor]:
    """What each call of the cell returns in a plain run."""
    with recorded(module, ["cell"]) as seen:
        module(x)
    return seen["cell"]


def _edited(module: nn.Module, path: str, visit: int, x: torch.Tensor) -> torch.Tensor:
    """The result with one visit's output set to zero by a hook that counts."""
    calls = []

    def edit(output: torch.Tensor) -> torch.Tensor | None:
        calls.append(1)
        return output * 0 if len(calls) == visit + 1 else None

    with hooked(module, {path: edit}):
        return module(x)


# called several times


def test_an_access_means_the_first_visit(model: NNsight, x, visits) -> None:
    with model.trace(x):
        hidden = model.cell.output.save()
    assert_same(hidden, visits[0])


def test_next_moves_to_the_next_visit(model: NNsight, x, visits) -> None:
    with model.trace(x):
        first = model.cell.output.save()
        second = model.cell.next().output.save()
        third = model.cell.next().output.save()
    assert_same([first, second, third], visits[:3])


def test_next_of_the_tracer_moves_the_same_cursor(model: NNsight, x, visits) -> None:
    with model.trace(x) as tracer:
        tracer.next()
        second = model.cell.output.save()
        fourth = model.cell.next().next().output.save()
    assert_same([second, fourth], [visits[1], visits[3]])


@pytest.mark.parametrize("key", [slice(None), slice(1, 3), 2, [0, 3], slice(0, None, 2)], ids=repr)
def test_a_loop_over_the_visits_of_a_module(model: NNsight, x, visits, key) -> None:
    expected = [*range(4)][key] if isinstance(key, slice) else key
    expected = [expected] if isinstance(expected, int) else expected
    with model.trace(x) as tracer:
        seen = [].save()
        steps = [].save()
        for step in model.cell.iter[key]:
            steps.append(step)
            seen.append(model.cell.output)
        result = tracer.result.save()
    assert list(steps) == list(expected)
    assert_same(list(seen), [visits[k] for k in expected])


def test_a_loop_of_the_tracer_is_one_over_visits(model: NNsight, module, x, visits) -> None:
    with recorded(module, ["act"]) as seen:
        module(x)
    with model.trace(x) as tracer:
        pairs = [].save()
        with tracer.iter[:]:
            pairs.append((model.cell.output, model.act.output))
    assert_same(pairs, list(zip(visits, seen["act"], strict=True)))


@pytest.mark.parametrize("visit", range(4))
def test_an_edit_of_one_visit(model: NNsight, module, x, visit: int) -> None:
    expected = _edited(module, "cell", visit, x)
    with model.trace(x) as tracer:
        for _ in tracer.iter[visit]:
            model.cell.output = model.cell.output * 0
        result = model.output.save()
    assert_same(result, expected)


def test_an_edit_of_all_visits(model: NNsight, module, x) -> None:
    with hooked(module, {"cell": lambda output: output + 1}):
        expected = module(x)
    with model.trace(x) as tracer:
        for _ in tracer.iter[:]:
            model.cell.output += 1
        result = tracer.result.save()
    assert_same(result, expected)


def test_one_visit_is_skipped(model: NNsight, module, x, visits) -> None:
    calls = []

    def replaced(output: torch.Tensor) -> torch.Tensor | None:
        calls.append(1)
        return visits[0] if len(calls) == 3 else None

    with hooked(module, {"cell": replaced}):
        expected = module(x)
    with model.trace(x) as tracer:
        first = model.cell.output
        for _ in tracer.iter[2]:
            model.cell.skip(first)
        output = model.output.save()
    assert_same(output, expected)


def test_inputs_of_the_visits(model: NNsight, module, x) -> None:
    given = []
    before = {"cell": lambda args, kwargs: given.append(args[0])}
    with hooked(module, before=before):
        module(x)
    with model.trace(x) as tracer:
        seen = [].save()
        for _ in tracer.iter[1:]:
            seen.append(model.cell.input)
    assert_same(list(seen), given[1:])


def test_an_input_of_one_visit_is_replaced(model: NNsight, module, x) -> None:
    calls = []

    def replace(args, kwargs):
        calls.append(1)
        return ((args[0] * 3,), kwargs) if len(calls) == 3 else None

    with hooked(module, before={"cell": replace}):
        expected = module(x)
    with model.trace(x) as tracer:
        with tracer.iter[2]:
            model.cell.input = model.cell.input * 3
        result = model.output.save()
    assert_same(result, expected)


def test_a_visit_that_is_over_is_not_served_by_a_later_one(model: NNsight, x) -> None:
    with pytest.raises(OutOfOrderError, match=r"cell\.output has already passed"):
        with model.trace(x):
            act = model.act.output
            late = model.cell.output.save()


def test_a_visit_that_does_not_come_is_said_to_be_missing(model: NNsight, x) -> None:
    with pytest.raises(OutOfOrderError, match="called 4 times in this run, and visit 5"):
        with model.trace(x) as tracer:
            for _ in range(5):
                tracer.next()
            never = model.cell.output.save()


def test_a_cache_has_a_list_of_visits(model: NNsight, x, visits) -> None:
    with model.trace(x) as tracer:
        cache = tracer.cache()
    assert_same(cache["model.cell"].output, visits)
    assert isinstance(cache["model.head"].output, torch.Tensor)


def test_gradients_of_each_visit(model: NNsight, module, x) -> None:
    with recorded(module, ["cell"]) as seen:
        loss = module(x).pow(2).sum()
    expected = torch.autograd.grad(loss, seen["cell"])
    with model.trace(x) as tracer:
        visits = []
        for _ in tracer.iter[:4]:
            visits.append(model.cell.output)
        loss = model.output.pow(2).sum()
        with loss.backward():
            grads = [visit.grad for visit in reversed(visits)].save()
    assert_same(grads[::-1], list(expected))


def test_a_module_that_is_called_a_number_of_times_that_the_values_decide() -> None:
    class Until(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.halve = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while x.abs().max() > 1:
                x = self.halve(x / 2)
            return x

    model = NNsight(Until())
    for start, count in ((16.0, 4), (3.0, 2)):
        with model.trace(torch.tensor([start])) as tracer:
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(model.halve.output.item())
            result = tracer.result.save()
        assert list(seen) == [start / 2**k for k in range(1, count + 1)]
        assert result.item() == seen[-1]


def test_a_module_that_calls_itself() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
            return self.linear(self(x, depth - 1)) if depth else x

    module = _seeded(Deep)
    x = torch.ones(1, 4)
    model = NNsight(module)
    with recorded(module, ["linear"]) as seen:
        expected = module(x)
    with model.trace(x) as tracer:
        both = [].save()
        for _ in tracer.iter[:]:
            both.append(model.linear.output)
        result = tracer.result.save()
    assert_same(list(both), seen["linear"])
    assert_same(result, expected)


# at two places


@pytest.fixture
def tied() -> NNsight:
    return NNsight(_seeded(Tied))


def test_both_places_of_a_shared_module_are_one_location(tied: NNsight, x) -> None:
    module = tied._module
    with recorded(module, ["first"]) as seen:
        expected = module(x)
    with tied.trace(x):
        by_first = tied.first.output.save()
        by_second = tied.second.next().output.save()
    assert_same([by_first, by_second], seen["first"])
    with tied.trace(x):
        by_second = tied.second.output.save()
        between = tied.between.output.save()
        by_first = tied.first.next().output.save()
    assert_same([by_second, by_first], seen["first"])


@pytest.mark.parametrize("name", ["first", "second"])
@pytest.mark.parametrize("visit", [0, 1])
def test_an_edit_by_either_name_is_of_the_visit(tied: NNsight, x, name: str, visit: int) -> None:
    expected = _edited(tied._module, "first", visit, x)
    with tied.trace(x) as tracer:
        for _ in tracer.iter[visit]:
            tied.get(name).output[:] = 0
        result = tied.output.save()
    assert_same(result, expected)


def test_a_shared_module_in_a_sequential(x) -> None:
    shared = _seeded(lambda: nn.Linear(4, 4))
    module = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared)
    model = NNsight(module)
    with recorded(module, ["0"]) as seen:
        expected = module(x)
    assert len(model) == 5
    with model.trace(x) as tracer:
        visits = [].save()
        for _ in tracer.iter[:]:
            visits.append(model[4].output)
        result = tracer.result.save()
    assert_same(list(visits), seen["0"])
    assert_same(result, expected)
    with model.trace(x) as tracer:
        cache = tracer.cache(modules=[model[2]])
    assert [len(entry.outputs) for entry in cache.values()] == [3]
    assert_same(cache["model.0"].output, seen["0"])


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_cache_of_a_shared_module_is_found_by_each_of_its_names(x, number: int) -> None:
    shared = _seeded(lambda: nn.Linear(4, 4))
    model = NNsight(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared))
    with recorded(model._module, ["0"]) as seen:
        model._module(x)
    with model.trace(x) as tracer:
        cache = tracer.cache()
    assert_same(cache[f"model.{number}"].output, seen["0"])
    assert_same(cache.model[number].output, seen["0"])
    with model.trace(x) as tracer:
        cache = tracer.cache(modules=[f"{number}"])
    assert_same(cache[f"model.{number}"].output, seen["0"])


def test_a_module_shared_by_two_models(x) -> None:
    shared = _seeded(lambda: nn.Linear(4, 4))
    one, other = (
        NNsight(nn.Sequential(shared, nn.ReLU())),
        NNsight(nn.Sequential(shared, nn.Tanh())),
    )
    with one.trace(x):
        one[0].output[:] = 0
        zero = one.output.save()
    with other.trace(x):
        hidden = other[0].output.save()
    assert not zero.any()
    assert_same(hidden, shared(x))


def test_layers_that_share_all_but_their_norms(x) -> None:
    class Block(nn.Module):
        def __init__(self, mix: nn.Module) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.mix = mix

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.mix(self.norm(x))

    mix = _seeded(lambda: nn.Linear(4, 4))
    module = nn.Sequential(*(Block(mix) for _ in range(3)))
    model = NNsight(module)
    with recorded(module, ["0.mix", "1", "2.norm"]) as seen:
        expected = module(x)
    with model.trace(x) as tracer:
        first = model[0].mix.output.save()
        block = model[1].output.save()
        norm = model[2].norm.output.save()
        with tracer.iter[2]:
            third = model[2].mix.output.save()
        result = model.output.save()
    assert_same([first, third], [seen["0.mix"][0], seen["0.mix"][2]])
    assert_same([block, norm], [seen["1"][0], seen["2.norm"][0]])
    assert_same(result, expected)


# tied weights


def test_a_head_with_the_embeddings_weights_is_a_module_of_its_own() -> None:
    model = models.wrapped(GPT2)
    assert model.lm_head.weight is model.transformer.wte.weight
    with recorded(bare(GPT2), ["transformer.wte", "lm_head"]) as seen:
        bare(GPT2)(**encoded(LONG))
    with model.trace(LONG):
        embedded = model.transformer.wte.output.save()
        logits = model.lm_head.output.save()
    assert_same([embedded, logits], [seen["transformer.wte"][0], seen["lm_head"][0]])


def test_an_edit_of_the_embedding_is_none_of_the_head() -> None:
    model = models.wrapped(GPT2)
    with hooked(bare(GPT2), {"transformer.wte": lambda output: output * 2}):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with model.trace(LONG):
        model.transformer.wte.output = model.transformer.wte.output * 2
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_a_scan_of_tied_weights() -> None:
    model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
    with model.scan(LONG):
        logits = model.lm_head.output.shape
    assert logits == (1, 8, len(models.WORDS))
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_part_that_only_the_second_visit_calls(x) -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(4, 4)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.part(x) if self.calls % 2 == 0 else x + 1

    module = nn.Sequential(block := _seeded(Sometimes), nn.ReLU(), block)
    model = NNsight(module)
    with recorded(module, ["0.part"]) as seen:
        module(x)
    with model.trace(x):
        between = model[1].output.save()
        part = model[0].part.output.save()
    assert_same([part], seen["0.part"])
