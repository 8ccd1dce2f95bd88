"""A model outside of a run carries nothing of a run, however that run ended."""

import copy
import io
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight
from tests import models
from tests.models import GPT2, LONG, assert_same, encoded, hooked

FIRST = "the cat sat"
SECOND = "a red bird"


class _Stop(Exception):
    pass


def _reads(model):
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()


def _reads_everything(model):
    with model.trace(LONG):
        seen = [layer.mlp.output for layer in model.transformer.h].save()


def _writes(model):
    with model.trace(LONG):
        model.transformer.h[0].output[:] = 0
        model.transformer.h[1].output = model.transformer.h[1].output * 2
        model.transformer.h[2].attn.output[0] = model.transformer.h[2].attn.output[0] * 2


def _skips(model):
    with model.trace(LONG):
        model.transformer.h[1].skip(model.transformer.h[0].output)


def _invokes(model):
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            hidden = model.transformer.h[1].output
        with tracer.invoke(LONG):
            model.transformer.h[1].output[:, -1] = hidden[:, -1]
        with tracer.invoke():
            logits = model.output.logits.save()


def _captures(model):
    with model.trace(LONG, output_hidden_states=True):
        model.transformer.h[1].output = model.transformer.h[1].output * 2
        output = model.output.save()


def _generates(model):
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        for _ in tracer.iter[:]:
            model.transformer.h[1].output[:] = 0
        result = tracer.result.save()


def _stops(model):
    with model.trace(LONG) as tracer:
        hidden = model.transformer.h[1].output.save()
        tracer.stop()


def _stops_a_generation(model):
    with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        for step in tracer.iter[:]:
            hidden = model.transformer.h[1].output
            if step == 1:
                tracer.stop()


def _raises_in_the_block(model):
    with pytest.raises(ZeroDivisionError):
        with model.trace(LONG):
            hidden = model.transformer.h[1].output
            1 / 0


def _raises_in_an_invoke(model):
    with pytest.raises(ZeroDivisionError):
        with model.trace() as tracer:
            with tracer.invoke(FIRST):
                logits = model.output.logits.save()
            with tracer.invoke(SECOND):
                hidden = model.transformer.h[1].output
                1 / 0


def _raises_before_the_run(model):
    with pytest.raises(ZeroDivisionError):
        with model.trace() as tracer:
            with tracer.invoke(FIRST):
                logits = model.output.logits.save()
            1 / 0


def _raises_in_a_generation(model):
    with pytest.raises(ZeroDivisionError):
        with model.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
            for step in tracer.iter[:]:
                hidden = model.transformer.h[1].output
                1 / (1 - step)


def _raises_in_the_model(model):
    def explode(_output):
        raise _Stop

    with hooked(model._module, {"transformer.h.1": explode}):
        with pytest.raises(_Stop):
            with model.trace(LONG):
                hidden = model.transformer.h[0].output.save()
                logits = model.output.logits.save()


def _breaks_the_model(model):
    with pytest.raises(RuntimeError):
        with model.trace(LONG):
            model.transformer.h[0].output = torch.zeros(1, 2, 5)


def _asks_too_late(model):
    with pytest.raises(ValueError, match="passed"):
        with model.trace(LONG):
            late = model.transformer.h[2].output
            early = model.transformer.h[0].output


def _asks_for_what_never_comes(model):
    with pytest.raises(ValueError, match="attn_dropout"):
        with model.trace(LONG):
            never = model.transformer.h[0].attn.attn_dropout.output


def _shares_without_a_barrier(model):
    with pytest.raises(NameError):
        with model.trace() as tracer:
            with tracer.invoke(FIRST):
                for layer in model.transformer.h:
                    hidden = layer.output
            with tracer.invoke(SECOND):
                doubled = hidden * 2


def _fails_in_its_first_module(model):
    with pytest.raises(IndexError):
        with model.trace(torch.tensor([[3]]), position_ids=torch.tensor([[1000]])):
            hidden = model.transformer.h[0].output


def _has_no_input(model):
    with pytest.raises(ValueError, match="input"):
        with model.trace():
            hidden = model.transformer.h[0].output


def _is_refused(model):
    with pytest.raises(NotImplementedError):
        with model.trace(LONG, remote=True):
            hidden = model.transformer.h[0].output


RUNS = [
    _reads,
    _reads_everything,
    _writes,
    _skips,
    _invokes,
    _captures,
    _generates,
    _stops,
    _stops_a_generation,
    _raises_in_the_block,
    _raises_in_an_invoke,
    _raises_before_the_run,
    _raises_in_a_generation,
    _raises_in_the_model,
    _breaks_the_model,
    _asks_too_late,
    _asks_for_what_never_comes,
    _shares_without_a_barrier,
    _fails_in_its_first_module,
    _has_no_input,
    _is_refused,
]


@pytest.fixture(params=RUNS, ids=lambda run: run.__name__.strip("_"))
def run(request) -> Callable[[LanguageModel], None]:
    return request.param


@pytest.fixture
def gpt2() -> LanguageModel:
    """A model of its own; its plain run has been made, and transformers has left its hooks."""
    module = models.new_gpt2()
    module(**encoded(LONG), output_hidden_states=True)
    return LanguageModel(module, tokenizer=models.tokenizer())


def _state(module: nn.Module) -> dict[str, object]:
    """Everything about a module and those below that a run could change."""
    found = {}
    for path, part in module.named_modules():
        found[path] = (
            type(part),
            part.__class__,
            id(part),
            {
                name: dict(value) if isinstance(value, dict) else id(value)
                for name, value in part.__dict__.items()
            },
        )
    return found


def test_every_attribute_and_type_is_as_before(gpt2: LanguageModel, run) -> None:
    before = _state(gpt2._module)
    run(gpt2)
    after = _state(gpt2._module)
    assert after.keys() == before.keys()
    for path, state in before.items():
        assert after[path] == state, path


def test_no_hooks_are_left(gpt2: LanguageModel, run) -> None:
    module = models.new_gpt2()
    run(LanguageModel(module, tokenizer=models.tokenizer()))
    plain = models.new_gpt2()
    plain(**encoded(LONG), output_hidden_states=True)
    allowed = {path: len(part._forward_hooks) for path, part in plain.named_modules()}
    for path, part in module.named_modules():
        # transformers' capturing hooks stay by transformers' own doing
        assert len(part._forward_hooks) in (0, allowed[path])
        assert not part._forward_pre_hooks
        assert not part._backward_hooks
        assert not part._forward_hooks_with_kwargs
        assert not part._forward_hooks_always_called


def test_outputs_are_bit_identical(gpt2: LanguageModel, run) -> None:
    expected = models.bare(GPT2)(**encoded(LONG), output_hidden_states=True)
    run(gpt2)
    output = gpt2._module(**encoded(LONG), output_hidden_states=True)
    assert_same(output.logits, expected.logits)
    assert_same(output.hidden_states, expected.hidden_states)


def test_the_next_trace_is_right(gpt2: LanguageModel, run) -> None:
    run(gpt2)
    with gpt2.trace(LONG):
        hidden = gpt2.transformer.h[1].output.save()
        logits = gpt2.output.logits.save()
    assert_same(hidden, models.output_of(GPT2, LONG, "transformer.h.1"))
    assert_same(logits, models.logits_of(GPT2, LONG))


def test_the_model_is_pickled_and_copied(run) -> None:
    module = models.new_gpt2()
    run(LanguageModel(module, tokenizer=models.tokenizer()))
    # a model on which transformers' hooks stand cannot be pickled, with or without a run
    for part in module.modules():
        part._forward_hooks.clear()
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert type(other) is type(module)
        assert_same(other(**encoded(LONG)).logits, models.logits_of(GPT2, LONG))


def test_a_plain_module_is_pickled_and_copied_after_a_run(module: nn.Module, x) -> None:
    expected = module(x)
    model = NNsight(module)
    with model.trace(x):
        model.layers[0].output[:] = 0
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    for other in (saved, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert type(other) is type(module)
        assert [type(part) for part in other.modules()] == [type(part) for part in module.modules()]
        assert_same(other(x), expected)


def test_a_module_is_copied_while_a_run_goes_on(module: nn.Module, model: NNsight, x) -> None:
    expected = module(x)
    with model.trace(x):
        hidden = model.layers[1].output
        copied = copy.deepcopy(module).save()
        later = model.layers[3].output.save()
    assert {type(part) for part in copied.modules()} == {type(part) for part in module.modules()}
    assert_same(copied(x), expected)
    assert_same(module(x), expected)


def test_a_running_module_is_an_instance_of_its_class(module: nn.Module, model, x) -> None:
    kind = type(module.layers[1])
    with model.trace(x):
        hidden = model.layers[1].output
        seen = [
            isinstance(module.layers[2], kind),
            module.layers[2].__class__ is kind,
            repr(module.layers[2]),
        ].save()
        later = model.layers[3].output
    assert seen == [True, True, repr(module.layers[2])]


def test_wrapping_twice_leaves_the_module_alone(module: nn.Module, x) -> None:
    expected = module(x)
    first = NNsight(module)
    second = NNsight(module)
    with first.trace(x):
        first.layers[0].output[:] = 0
    with second.trace(x):
        hidden = second.layers[0].output.save()
    assert_same(hidden, module.layers[0](x))
    assert_same(module(x), expected)


def test_another_thread_gets_plain_results_during_a_run(module: nn.Module, model, x) -> None:
    expected = module(x)
    results = []

    def call():
        results.append(module(x))

    def in_another_thread():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    with model.trace(x):
        model.layers[0].output[:] = 0
        in_another_thread()
        model.layers[3].output = model.layers[3].output * 0
        in_another_thread()
        edited = model.output.save()
    assert len(results) == 2
    assert_same(results, [expected, expected])
    assert_same(edited, module.head(module.layers[5](module.layers[4](x * 0))))


def test_another_thread_gets_plain_results_while_the_model_itself_runs(x) -> None:
    # the thread is started by the model's own forward, between two offers
    results = []

    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.depth = 0

        def forward(self, x):
            x = self.first(x)
            if self.depth == 0:
                self.depth = 1
                thread = threading.Thread(target=lambda: results.append(self(given)))
                thread.start()
                thread.join()
                self.depth = 0
            return self.second(x)

    module = Threaded()
    given = x
    module.depth = 1
    expected = module(x)
    module.depth = 0
    model = NNsight(module)
    with model.trace(x):
        model.first.output[:] = 0
        model.second.output[:] = 1
        edited = model.output.save()
    assert_same(results, [expected])
    assert_same(edited, torch.ones(2, 4))


def test_a_module_called_in_a_block_is_not_edited(module: nn.Module, model, x) -> None:
    expected = module(x)
    with model.trace(x):
        model.layers[0].output[:] = 0
        inner = module(x).save()
        model.layers[2].output[:] = 0
        again = model(x).save()
    assert_same(inner, expected)
    assert_same(again, expected)


def test_two_threads_trace_the_same_model_one_after_the_other(module: nn.Module, x) -> None:
    expected = [module.layers[0](x) * factor for factor in range(8)]
    model = NNsight(module)
    results = {}

    def work(factor):
        for _ in range(5):
            with model.trace(x):
                model.layers[0].output = model.layers[0].output * factor
                hidden = model.layers[1].input.save()
            results.setdefault(factor, []).append(hidden)

    threads = [threading.Thread(target=work, args=(factor,)) for factor in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))
    for factor, hidden in results.items():
        assert_same(hidden, [expected[factor]] * 5)


def test_a_model_trains_after_a_run(module: nn.Module, model, x) -> None:
    with model.trace(x):
        hidden = model.layers[0].output.save()
    module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.train() is module
    assert module.eval() is module
    assert len(list(module.state_dict())) == 2 * (len(module.layers) + 1)
