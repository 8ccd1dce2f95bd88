"""The run holds no value that the block has let go of: counted beside a hand-written hook."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch

from nnsight_dsl import LanguageModel, NNsight
from tests import models
from tests.models import LONG, encoded


@contextmanager
def _without_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Watch:
    """Weak references to tensors, and how many were alive whenever one was added."""

    def __init__(self) -> None:
        self.references = []
        self.counts = []

    def add(self, tensor) -> None:
        self.references.append(weakref.ref(tensor))
        self.counts.append(self.alive())

    def alive(self) -> int:
        return sum(reference() is not None for reference in self.references)


@pytest.fixture(autouse=True)
def no_graph():
    # a graph keeps values by itself
    with torch.no_grad(), _without_collector():
        yield


def _by_hooks(module, x) -> Watch:
    """Read every layer into one name by hand."""
    watch = Watch()
    state = {}

    def keep(_module, _args, output):
        state["h"] = output
        watch.add(output)

    handles = [layer.register_forward_hook(keep) for layer in module.layers]
    module(x)
    for handle in handles:
        handle.remove()
    return watch


def test_reading_every_layer_into_one_name_keeps_as_few_as_a_hook(module, model, x) -> None:
    expected = _by_hooks(module, x).counts
    watch = Watch()
    with model.trace(x):
        for layer in model.layers:
            h = layer.output
            watch.add(h)
    assert len(watch.counts) == len(module.layers)
    assert watch.counts == expected
    assert watch.alive() == 0


def test_reading_without_a_name_keeps_nothing(model, module, x) -> None:
    watch = Watch()
    with model.trace(x):
        for layer in model.layers:
            watch.add(layer.output)
    # one layer's output is the next one's input while that runs
    assert max(watch.counts) <= 2
    assert watch.alive() == 0


def test_reading_in_statements_of_a_plain_block_keeps_as_few(module, model, x) -> None:
    watch = Watch()
    with model.trace(x):
        h = model.layers[0].output
        watch.add(h)
        h = model.layers[1].output
        watch.add(h)
        h = model.layers[2].output
        watch.add(h)
        h = model.layers[3].output
        watch.add(h)
    assert max(watch.counts) <= 2
    assert watch.alive() == 0


def test_inputs_are_not_kept(module, model, x) -> None:
    watch = Watch()
    with model.trace(x):
        for layer in model.layers[1:]:
            h = layer.input
            watch.add(h)
    assert max(watch.counts) <= 2
    assert watch.alive() == 0


def test_replacements_are_not_kept(module, model, x) -> None:
    watch = Watch()
    with model.trace(x):
        for layer in model.layers:
            h = layer.output * 2
            watch.add(h)
            layer.output = h
    assert max(watch.counts) <= 2
    assert watch.alive() == 0


def test_what_was_replaced_is_not_kept(module, model, x) -> None:
    watch = Watch()
    with model.trace(x):
        for layer in model.layers:
            watch.add(layer.output)
            layer.output = layer.output * 2
    assert max(watch.counts) <= 2
    assert watch.alive() == 0


def test_a_deleted_name_keeps_as_few_as_a_hook_that_keeps_nothing(module, model, x) -> None:
    expected = Watch()
    handles = [
        layer.register_forward_hook(lambda _module, _args, output: expected.add(output))
        for layer in module.layers
    ]
    module(x)
    for handle in handles:
        handle.remove()
    watch = Watch()
    with model.trace(x):
        for layer in model.layers:
            h = layer.output
            watch.add(h)
            del h
    assert watch.counts == expected.counts
    assert watch.alive() == 0


def test_saved_values_are_kept_and_no_others(model, x) -> None:
    watch = Watch()
    with model.trace(x):
        for layer in model.layers:
            h = layer.output
            watch.add(h)
        kept = h.save()
    assert watch.alive() == 1
    assert watch.references[-1]() is kept
    del kept, h
    assert watch.alive() == 0


def test_a_saved_value_is_free_when_its_name_is(model, x) -> None:
    watch = Watch()
    with model.trace(x) as tracer:
        kept = model.layers[0].output.save()
        watch.add(kept)
    assert watch.alive() == 1
    del kept, tracer
    assert watch.alive() == 0


def test_a_block_that_raises_keeps_nothing(model, x) -> None:
    watch = Watch()
    try:
        with model.trace(x):
            for layer in model.layers:
                h = layer.output
                watch.add(h)
            raise KeyError
    except KeyError:
        pass
    gc.collect()
    assert len(watch.counts) == len(model.layers)
    assert max(watch.counts) <= 2
    assert watch.alive() == 0


def test_a_stopped_block_keeps_nothing(model, x) -> None:
    watch = Watch()
    with model.trace(x) as tracer:
        h = model.layers[0].output
        watch.add(h)
        h = model.layers[1].output
        watch.add(h)
        tracer.stop()
    gc.collect()
    assert watch.alive() == 0


def test_invokes_keep_nothing() -> None:
    model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
    watch = Watch()
    with model.trace() as tracer:
        with tracer.invoke("the cat sat"):
            for layer in model.transformer.h:
                watch.add(layer.output)
        with tracer.invoke(LONG):
            for layer in model.transformer.h:
                watch.add(layer.output)
        with tracer.invoke():
            for layer in model.transformer.h:
                watch.add(layer.output)
    gc.collect()
    assert len(watch.references) == 9
    assert watch.alive() == 0


def test_a_value_shared_across_invokes_is_free_after_the_run() -> None:
    model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())
    watch = Watch()
    with model.trace() as tracer:
        with tracer.invoke("the cat sat"):
            shared = model.transformer.h[0].output
            watch.add(shared)
        with tracer.invoke("a red bird"):
            model.transformer.h[1].output = shared
    gc.collect()
    assert len(watch.references) == 1
    assert watch.alive() == 0


def test_steps_keep_nothing() -> None:
    module = models.new_gpt2()
    model = LanguageModel(module, tokenizer=models.tokenizer())
    by_hand = Watch()
    handle = module.transformer.h[1].register_forward_hook(
        lambda _module, _args, output: by_hand.add(output)
    )
    module.generate(**encoded(LONG), max_new_tokens=5, do_sample=False)
    handle.remove()
    watch = Watch()
    with model.generate(LONG, max_new_tokens=5, do_sample=False) as tracer:
        for _ in tracer.iter[:]:
            watch.add(model.transformer.h[1].output)
    assert watch.counts == by_hand.counts
    gc.collect()
    assert watch.alive() == 0


def test_a_helper_that_is_carried_keeps_nothing(module, model, x) -> None:
    watch = Watch()

    def norm(layer):
        watch.add(layer.output)
        return layer.output.norm().item()

    with model.trace(x):
        norms = list(map(norm, model.layers)).save()
    assert len(norms) == len(module.layers)
    assert max(watch.counts) <= 2
    gc.collect()
    assert watch.alive() == 0


def test_runs_leave_no_objects_behind(model, x) -> None:
    def one():
        with model.trace(x):
            h = model.layers[0].output
            model.layers[1].output[:] = 0

    def count():
        gc.collect()
        return sum(type(found) is torch.Tensor for found in gc.get_objects())

    one()
    before = count()
    for _ in range(20):
        one()
    assert count() == before


def _source_read(model, x):
    with model.trace(x):
        h = model.layers[1].source.F_linear_0.output.save()
    return h


def _source_input(model, x):
    with model.trace(x):
        h = model.layers[1].source.F_linear_0.input.save()
    return h


def _source_by_name(model, x):
    name = "F_linear_0"
    with model.trace(x):
        h = getattr(model.layers[1].source, name).output.save()
    return h


def _source_skipped(model, x):
    with model.trace(x):
        model.layers[1].source.F_linear_0.skip(x * 2)
        h = model.layers[1].output.save()
    return h


def _source_by_two(model, x):
    with model.trace() as tracer:
        with tracer.invoke(x):
            h = model.layers[1].source.F_linear_0.output.save()
        with tracer.invoke():
            other = model.layers[1].source.return_0.output
    return h


def _source_fails(model, x):
    with pytest.raises(ZeroDivisionError):
        with model.trace(x):
            h = model.layers[1].source.F_linear_0.output.save()
            1 / 0
    return h


def _source_cached(model, x):
    with model.trace(x) as tracer:
        cache = tracer.cache(modules=[model.layers[1].source.F_linear_0])
        h = model.layers[1].output.save()
    return h


RUNS = [
    _source_read,
    _source_input,
    _source_by_name,
    _source_skipped,
    _source_by_two,
    _source_fails,
    _source_cached,
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__.strip("_"))
def test_operations_hold_no_value_when_the_run_is_over(run, model, x) -> None:
    for number in range(4):
        given = x.clone()
        saved = run(model, given)
        watch = [weakref.ref(given), weakref.ref(saved)]
        del given, saved
        assert [one() for one in watch] == [None, None], number


def test_a_tapped_copy_that_the_model_has_kept_holds_no_value(x) -> None:
    class Keeping(torch.nn.Module):
        kept = None

        def forward(self, x):
            # as what caches by a bound method does
            self.__dict__["kept"] = self.forward
            return torch.tanh(x)

    net = torch.nn.Sequential(Keeping())
    model = NNsight(net)
    given = x.clone()
    with model.trace(given):
        h = model[0].source.torch_tanh_0.output.save()
    watch = [weakref.ref(given), weakref.ref(h)]
    del given, h
    assert [one() for one in watch] == [None, None]
    assert torch.equal(net[0].kept(x), torch.tanh(x))
