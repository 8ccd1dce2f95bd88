"""Many invokes, many runs, many threads: all correct, and nothing grows."""

import gc
import threading
import tracemalloc

import pytest
import torch

from nnsight_dsl import NNsight
from tests import models
from tests.models import GPT2, assert_near, assert_same
from tests.runtime.conftest import Stack

INVOKES = 200
RUNS = 500
STRETCHES = 4
THREADS = 8
RUNS_OF_A_THREAD = 50


@pytest.fixture
def module():
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return Stack().requires_grad_(False)


@pytest.fixture
def model(module):
    return NNsight(module)


@pytest.fixture
def x():
    return torch.linspace(-1, 1, 8).reshape(2, 4)


def test_two_hundred_invokes_in_one_trace():
    gpt2 = models.wrapped(GPT2)
    prompts = ["the cat", "a red bird", "the dog ran under"]
    with gpt2.trace() as tracer:
        found = {}.save()
        for number in range(INVOKES):
            with tracer.invoke(prompts[number % 3]):
                gpt2.transformer.h[0].output = gpt2.transformer.h[0].output * (number / INVOKES)
                gpt2.transformer.h[1].output[:, -1] = number
                found[number] = gpt2.transformer.h[2].input
    assert len(found) == INVOKES
    for number, value in found.items():
        prompt = prompts[number % 3]
        factor = number / INVOKES
        changes = {
            "transformer.h.0": lambda out, factor=factor: out * factor,
            "transformer.h.1": lambda out, number=number: _with_last(out, number),
        }
        with models.hooked(models.bare(GPT2), changes):
            with models.recorded(models.bare(GPT2), ["transformer.h.1"]) as seen:
                models.bare(GPT2)(**models.encoded(prompt))
        assert_near(GPT2.own(value, prompt), seen["transformer.h.1"][0])


def _with_last(output, number):
    output = output.clone()
    output[:, -1] = number
    return output


def one_run(model, x):
    """A run with all that a run can leave behind: a write, a save, a loop, a helper, an error."""

    def helper(layer):
        return layer.output.norm()

    with model.trace(x) as tracer:
        hidden = model.layers[0].output
        model.layers[1].output[:] = hidden
        norms = list(map(helper, model.layers[2:4]))
        for _ in tracer.iter[:1]:
            late = model.layers[4].output
        result = model.output.save()
    with pytest.raises(ZeroDivisionError):
        with model.trace(x):
            hidden = model.layers[0].output
            1 / 0
    return result


def test_five_hundred_runs_in_a_row_keep_nothing(model, module, x):
    expected = module.head(_through(module, module.layers[0](x), 2))
    for _ in range(20):
        assert_same(one_run(model, x), expected)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        for _ in range(20):
            one_run(model, x)
        grown = []
        for _ in range(STRETCHES):
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(RUNS // STRETCHES):
                assert_same(one_run(model, x), expected)
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    # one object that a run leaves behind is 500 here, and none is smaller than 16 bytes
    assert len(gc.get_objects()) - objects < RUNS / 5
    # what each run leaves is there in every stretch; a table that doubles once is not
    assert min(grown) < RUNS // STRETCHES * 16


def _through(module, value, first):
    for layer in module.layers[first:]:
        value = layer(value)
    return value


def test_eight_threads_of_fifty_runs_on_one_model(model, module, x):
    found: dict[tuple[int, int], torch.Tensor] = {}

    def work(number):
        for run in range(RUNS_OF_A_THREAD):
            factor = number * RUNS_OF_A_THREAD + run
            with model.trace(x * run):
                model.layers[0].output = model.layers[0].output * factor
                hidden = model.layers[2].input.save()
            found[number, run] = hidden

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == THREADS * RUNS_OF_A_THREAD
    for (number, run), hidden in found.items():
        factor = number * RUNS_OF_A_THREAD + run
        assert_same(hidden, module.layers[1](module.layers[0](x * run) * factor))
