"""Threads and tasks that trace: runs that share modules take turns, others do not wait."""

import asyncio
import gc
import linecache
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nnsight_dsl import NestedRunError, NNsight
from tests import models
from tests.models import GPT2, assert_near, assert_same
from tests.runtime.conftest import Stack
from tests.waiting import PATIENCE


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


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in threads that start together; raise what any of them raised."""
    failures: list[BaseException] = []
    gate = threading.Barrier(count)

    def guarded(number):
        try:
            gate.wait(timeout=PATIENCE)
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def scaled(model, x, factor):
    """The input of the second layer, with the output of the first one scaled."""
    with model.trace(x):
        model.layers[0].output = model.layers[0].output * factor
        hidden = model.layers[1].input.save()
    return hidden


# threads


def test_threads_that_generate_and_trace_one_model_get_their_own_values():
    gpt2 = models.wrapped(GPT2)
    expected = models.output_of(GPT2, "the cat", "transformer.h.1")
    tokens = models.bare(GPT2).generate(
        **models.encoded("the cat"), max_new_tokens=3, do_sample=False
    )
    found = {}

    def work(number):
        for _ in range(3):
            if number % 2:
                with gpt2.generate("the cat", max_new_tokens=3, do_sample=False) as tracer:
                    with tracer.iter[1]:
                        gpt2.transformer.h[0].output
                    value = tracer.result.save()
            else:
                with gpt2.trace() as tracer:
                    with tracer.invoke("the cat"):
                        gpt2.transformer.h[0].output = gpt2.transformer.h[0].output * 1
                        value = gpt2.transformer.h[1].output.save()
                    with tracer.invoke("the dog"):
                        gpt2.transformer.h[0].output[:] = number
            found.setdefault(number, []).append(value)

    in_threads(4, work)
    for number, values in found.items():
        for value in values:
            if number % 2:
                assert_same(value, tokens)
            else:
                assert_near(value, expected)


def test_threads_with_models_of_their_own_do_not_wait_for_each_other(x):
    first, second = NNsight(Stack()), NNsight(Stack())
    meeting = threading.Barrier(2)
    found = {}

    def work(number):
        model = (first, second)[number]
        with model.trace(x):
            hidden = model.layers[0].output
            # both are in the middle of their runs, or neither ever gets on
            meeting.wait(timeout=PATIENCE)
            result = model.layers[1].output.save()
        found[number] = result

    in_threads(2, work)
    for number, model in enumerate((first, second)):
        layers = model._module.layers
        assert_same(found[number], layers[1](layers[0](x)))


def test_models_that_share_a_layer_take_turns(x):
    shared = nn.Linear(4, 4)
    first = NNsight(nn.Sequential(shared, nn.Linear(4, 4)))
    second = NNsight(nn.Sequential(nn.Linear(4, 4), shared))
    running = []
    most = []

    def work(number):
        model = (first, second)[number % 2]
        for _ in range(10):
            with model.trace(x):
                running.append(number)
                most.append(len(running))
                hidden = model[0].output
                model[1].output
                running.remove(number)

    in_threads(4, work)
    assert len(most) == 40
    assert max(most) == 1


def test_a_thread_whose_run_fails_gives_the_turn_on(model, module, x):
    found = []

    def work(number):
        for _ in range(5):
            if number:
                found.append(torch.equal(scaled(model, x, number), module.layers[0](x) * number))
            else:
                with pytest.raises(ZeroDivisionError):
                    with model.trace(x):
                        model.layers[0].output
                        1 / 0

    in_threads(4, work)
    assert found == [True] * 15


def test_the_fast_path_of_torch_is_back_after_runs_that_overlap():
    def new():
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return NNsight(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval())

    long, short = new(), new()
    x = torch.ones(1, 3, 8)
    entered, may_end = threading.Event(), threading.Event()

    def work(number):
        if number:
            entered.wait(timeout=PATIENCE)
            with torch.no_grad(), short.trace(x):
                hidden = short.layers[0].linear1.output
                may_end.set()
        else:
            with torch.no_grad(), long.trace(x):
                long.layers[0].input
                entered.set()
                may_end.wait(timeout=PATIENCE)
                hidden = long.layers[0].linear1.output

    assert torch.backends.mha.get_fastpath_enabled()
    in_threads(2, work)
    assert torch.backends.mha.get_fastpath_enabled()


# tasks


def test_tasks_trace_one_model_beside_each_other(model, module, x):
    async def user(factor):
        found = []
        for _ in range(4):
            await asyncio.sleep(0)
            found.append(scaled(model, x, factor))
        return found

    async def all_of_them():
        return await asyncio.gather(*(user(factor) for factor in range(5)))

    for factor, found in enumerate(asyncio.run(all_of_them())):
        assert_same(found, [module.layers[0](x) * factor] * 4)


def test_tasks_trace_models_of_their_own(x):
    async def user(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = Stack()
        model = NNsight(module)
        await asyncio.sleep(0)
        found = scaled(model, x, seed)
        await asyncio.sleep(0)
        return torch.equal(found, module.layers[0](x) * seed)

    async def all_of_them():
        return await asyncio.gather(*(user(seed) for seed in range(4)))

    assert asyncio.run(all_of_them()) == [True] * 4


def test_tasks_that_trace_in_threads_take_turns(model, module, x):
    async def all_of_them():
        work = [asyncio.to_thread(scaled, model, x, factor) for factor in range(6)]
        return await asyncio.gather(*work)

    assert_same(asyncio.run(all_of_them()), [module.layers[0](x) * factor for factor in range(6)])


def test_a_task_that_is_started_in_a_block_sees_nothing_of_its_run(model, module, x):
    """A task copies the context it is made in; a block of the run must not be found there."""

    async def user():
        with model.trace(x):
            hidden = model.layers[0].output.save()
            task = asyncio.ensure_future(later())
            started = [task].save()
        return hidden, await started[0]

    async def later():
        return scaled(model, x, 2)

    first, second = asyncio.run(user())
    assert_same(first, module.layers[0](x))
    assert_same(second, module.layers[0](x) * 2)


# a run in a run


def test_a_trace_in_a_trace_of_the_same_model_is_an_error_with_a_remedy(model, module, x):
    with pytest.raises(NestedRunError, match="end the outer trace first, or add an invoke"):
        with model.trace(x):
            model.layers[0].output
            with model.trace(x):
                inner = model.layers[0].output.save()
    assert_same(scaled(model, x, 2), module.layers[0](x) * 2)


def test_a_helper_that_traces_the_same_model_is_one_too(model, x):
    with pytest.raises(NestedRunError, match="end the outer trace first"):
        with model.trace(x):
            hidden = model.layers[0].output
            other = scaled(model, x, 2)


def test_a_forward_that_traces_its_own_model_is_one_too(x):
    class Tracing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with model.trace(x):
                hidden = model.layer.output.save()
            return hidden

    model = NNsight(Tracing())
    with pytest.raises(NestedRunError, match="end the outer trace first"):
        with model.trace(x):
            result = model.output.save()


def test_a_generation_in_a_trace_of_the_same_model_is_one_too():
    gpt2 = models.wrapped(GPT2)
    with pytest.raises(NestedRunError):
        with gpt2.trace("the cat"):
            hidden = gpt2.transformer.h[0].output
            with gpt2.generate("the dog", max_new_tokens=2) as tracer:
                tokens = tracer.result.save()


def test_threads_lower_blocks_of_their_own_at_once(model, module, x):
    """Python counts its depth in a syntax tree for all threads together, up to 3.12."""
    blocks = 8
    text = "".join(
        f"with model.trace(x):\n"
        f"    hidden = [layer.output * {number} for layer in model.layers[:2]]\n"
        f"    found[{number}] = hidden[1] + {number}\n"
        for number in range(blocks)
    )
    expected = [module.layers[1](module.layers[0](x)) * n + n for n in range(blocks)]
    results = {}

    def let_others_run(phase, info):
        time.sleep(1e-6)

    def work(thread, depth=0):
        # the depth that Python counts begins with that of the stack
        if depth < 10 * thread:
            return work(thread, depth + 1)
        filename = f"<blocks of thread {thread}>"
        linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
        found = {}
        exec(compile(text, filename, "exec"), {"model": model, "x": x, "found": found})
        results[thread] = [found[number] for number in range(blocks)]

    # what lowering imports is imported first: pytest parses it, too
    scaled(model, x, 1)
    before, thresholds = set(linecache.cache), gc.get_threshold()
    # a collection in the middle of a parse is where Python goes on with another thread
    gc.callbacks.append(let_others_run)
    gc.set_threshold(100)
    try:
        in_threads(4, work)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(let_others_run)
        for name in set(linecache.cache) - before:
            del linecache.cache[name]
    assert len(results) == 4
    for found in results.values():
        assert_same(found, expected)
