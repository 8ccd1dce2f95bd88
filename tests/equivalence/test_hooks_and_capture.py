"""The user's own hooks, transformers' capturing hooks, and modules that are skipped."""

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight, OutOfOrderError, WriteError
from tests import models
from tests.models import (
    BERT,
    GPT2,
    LLAMA,
    LONG,
    Kind,
    assert_near,
    assert_same,
    bare,
    encoded,
    hooked,
)

FIRST = "the cat sat"
SECOND = "a red bird"
TWO = (FIRST, SECOND)


@pytest.fixture
def own(kind: Kind) -> LanguageModel:
    """A model that a test may put hooks on."""
    return LanguageModel(kind.new(), tokenizer=models.tokenizer())


def _squared(output):
    return output**2


# hooks of the user


def test_a_read_shows_the_value_after_the_users_forward_hooks(
    kind: Kind, own: LanguageModel
) -> None:
    path = kind.layer(1)
    with hooked(bare(kind), {path: _squared}):
        expected = bare(kind)(**encoded(LONG)).logits
    plain = models.output_of(kind, LONG, path)
    with hooked(own._module, {path: _squared}):
        with own.trace(LONG):
            hidden = own.get(path).output.save()
            logits = own.output.logits.save()
    assert_same(hidden, plain**2)
    assert_same(logits, expected)


def test_a_write_comes_after_the_users_forward_hooks(kind: Kind, own: LanguageModel) -> None:
    path = kind.layer(1)
    with hooked(bare(kind), {path: lambda output: output**2 * 0.5}):
        expected = bare(kind)(**encoded(LONG)).logits
    with hooked(own._module, {path: _squared}):
        with own.trace(LONG):
            own.get(path).output = own.get(path).output * 0.5
            logits = own.output.logits.save()
    assert_same(logits, expected)


def test_a_users_hook_sees_the_value_before_a_write(own: LanguageModel, kind: Kind) -> None:
    path = kind.layer(1)
    plain = models.output_of(kind, LONG, path)
    with models.recorded(own._module, [path]) as seen:
        with own.trace(LONG):
            own.get(path).output = own.get(path).output * 0
    assert_same(seen[path], [plain])


def test_a_users_hook_on_the_next_module_sees_a_write(own: LanguageModel, kind: Kind) -> None:
    given = []
    before = {kind.layer(1): lambda args, kwargs: given.append(args[0])}
    with hooked(own._module, before=before):
        with own.trace(LONG):
            own.get(kind.layer(0)).output = own.get(kind.layer(0)).output * 0
    assert len(given) == 1
    assert not given[0].any()


def test_input_is_what_the_caller_gave_before_the_users_pre_hooks(
    kind: Kind, own: LanguageModel
) -> None:
    path = kind.layer(1)
    caller = models.output_of(kind, LONG, kind.layer(0))
    change = {path: lambda args, kwargs: ((args[0] ** 2, *args[1:]), kwargs)}
    with hooked(bare(kind), before=change):
        expected = bare(kind)(**encoded(LONG)).logits
    with hooked(own._module, before=change):
        with own.trace(LONG):
            given = own.get(path).input.save()
            logits = own.output.logits.save()
    assert_same(given, caller)
    assert_same(logits, expected)


def test_a_written_input_goes_through_the_users_pre_hooks(kind: Kind, own: LanguageModel) -> None:
    path = kind.layer(1)
    change = {path: lambda args, kwargs: ((args[0] ** 2, *args[1:]), kwargs)}
    both = {path: lambda args, kwargs: (((args[0] * 0.5) ** 2, *args[1:]), kwargs)}
    with hooked(bare(kind), before=both):
        expected = bare(kind)(**encoded(LONG)).logits
    with hooked(own._module, before=change):
        with own.trace(LONG):
            own.get(path).input = own.get(path).input * 0.5
            logits = own.output.logits.save()
    assert_same(logits, expected)


def test_global_hooks_of_torch_run_once_for_each_call(gpt2: LanguageModel) -> None:
    def count(call):
        calls = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, output: calls.append(type(module).__name__)
        )
        try:
            call()
        finally:
            handle.remove()
        return calls

    def traced():
        with gpt2.trace(LONG):
            hidden = gpt2.transformer.h[1].output.save()
            logits = gpt2.lm_head.output.save()

    assert count(traced) == count(lambda: bare(GPT2)(**encoded(LONG)))


def test_a_hook_that_stands_on_an_edited_layer_fires_once() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model = NNsight(module)
    calls = []
    with hooked(module, {"0": lambda output: calls.append(1), "": lambda output: calls.append(2)}):
        with model.trace(torch.ones(1, 3)):
            model[0].output[:] = 0
            result = model.output.save()
    assert calls == [1, 2]
    assert not result.any()


# output capturing


def test_captured_hidden_states_are_those_of_a_plain_run(kind: Kind, model: LanguageModel) -> None:
    expected = bare(kind)(**encoded(LONG), output_hidden_states=True)
    with model.trace(LONG, output_hidden_states=True):
        hidden = model.get(kind.layer(1)).output.save()
        output = model.output.save()
    assert_same(output.hidden_states, expected.hidden_states)
    assert_same(output.logits, expected.logits)
    assert_same(hidden, expected.hidden_states[2])


@pytest.mark.parametrize("form", ["in place", "replacement"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_captured_hidden_states_show_an_edit(
    kind: Kind, model: LanguageModel, number: int, form: str
) -> None:
    path = kind.layer(number)
    plain = bare(kind)(**encoded(LONG), output_hidden_states=True)
    edited = models.output_of(kind, LONG, path) ** 2
    with hooked(bare(kind), {path: _squared}):
        expected = bare(kind)(**encoded(LONG)).logits
    with model.trace(LONG, output_hidden_states=True):
        if form == "in place":
            model.get(path).output[:] = model.get(path).output ** 2
        else:
            model.get(path).output = model.get(path).output ** 2
        output = model.output.save()
    assert len(output.hidden_states) == 4
    assert_same(output.hidden_states[: number + 1], plain.hidden_states[: number + 1])
    if number < 2 or kind is BERT:
        assert_same(output.hidden_states[number + 1], edited)
    assert_same(output.logits, expected)


def test_captured_attentions_show_an_edit() -> None:
    model = LanguageModel(
        models.new_gpt2(attn_implementation="eager"), tokenizer=models.tokenizer()
    )
    module = models.new_gpt2(attn_implementation="eager")
    plain = module(**encoded(LONG), output_attentions=True)
    with model.trace(LONG, output_attentions=True):
        weights = model.transformer.h[1].attn.output[1].save()
        model.transformer.h[1].attn.output[1] = model.transformer.h[1].attn.output[1] * 0
        output = model.output.save()
    assert_same(weights, plain.attentions[1])
    assert_same(output.attentions[0], plain.attentions[0])
    assert not output.attentions[1].any()
    assert_same(output.logits, plain.logits)


def test_captured_hidden_states_show_the_edits_of_every_invoke(
    kind: Kind, model: LanguageModel
) -> None:
    path = kind.layer(1)
    plain = models.output_of(kind, FIRST, path)
    edited = models.output_of(kind, SECOND, path) ** 2
    with model.trace(output_hidden_states=True) as tracer:
        with tracer.invoke(FIRST):
            first = model.output.hidden_states[2].save()
        with tracer.invoke(SECOND):
            model.get(path).output = model.get(path).output ** 2
            second = model.output.hidden_states[2].save()
    assert_near(first, plain)
    assert_near(second, edited)


def test_a_users_hook_and_capturing_hooks_agree_on_a_read(kind: Kind, own: LanguageModel) -> None:
    path = kind.layer(0)
    plain = models.output_of(kind, LONG, path)
    with hooked(own._module, {path: _squared}):
        with own.trace(LONG, output_hidden_states=True):
            hidden = own.get(path).output.save()
            output = own.output.save()
    with hooked(bare(kind), {path: _squared}):
        expected = bare(kind)(**encoded(LONG), output_hidden_states=True)
    assert_same(hidden, plain**2)
    assert_same(output.logits, expected.logits)


def test_capturing_in_one_run_leaves_the_next_alone(kind: Kind, model: LanguageModel) -> None:
    with model.trace(LONG, output_hidden_states=True):
        model.get(kind.layer(1)).output[:] = 0
    with model.trace(LONG):
        hidden = model.get(kind.layer(1)).output.save()
        output = model.output.save()
    assert output.hidden_states is None
    assert_same(hidden, models.output_of(kind, LONG, kind.layer(1)))
    assert_same(output.logits, models.logits_of(kind, LONG))


# skipping


def test_a_skipped_layer_passes_the_value_on(kind: Kind, model: LanguageModel) -> None:
    before = models.output_of(kind, LONG, kind.layer(0))
    with hooked(bare(kind), {kind.layer(1): lambda _output: before}):
        expected = bare(kind)(**encoded(LONG)).logits
    with model.trace(LONG):
        hidden = model.get(kind.layer(0)).output
        model.get(kind.layer(1)).skip(hidden)
        skipped = model.get(kind.layer(1)).output.save()
        logits = model.output.logits.save()
    assert_same(skipped, before)
    assert_same(logits, expected)


def test_a_skipped_layer_does_not_run(own: LanguageModel, kind: Kind) -> None:
    path = kind.layer(1)
    with models.recorded(own._module) as calls:
        with own.trace(LONG):
            own.get(path).skip(own.get(kind.layer(0)).output)
    assert kind.layer(0) in calls
    assert kind.layer(2) in calls
    assert not [name for name in calls if name.startswith(path)]


def test_a_skip_value_is_what_the_caller_receives() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model = NNsight(module)
    x = torch.ones(1, 3)
    value = torch.tensor([[1.0, -2.0, 3.0]])
    with hooked(module, {"0": lambda output: output * 100}):
        with model.trace(x):
            model[0].skip(value)
            given = model[1].input.save()
            result = model.output.save()
    assert_same(given, value)
    assert_same(result, module[1](value))


def test_a_skipped_output_may_still_be_written(gpt2: LanguageModel) -> None:
    before = models.output_of(GPT2, LONG, "transformer.h.0")
    with hooked(bare(GPT2), {"transformer.h.1": lambda _output: before**2}):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with gpt2.trace(LONG):
        gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output)
        gpt2.transformer.h[1].output = gpt2.transformer.h[1].output ** 2
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)


def test_a_part_of_a_skipped_module_cannot_be_read(gpt2: LanguageModel) -> None:
    with pytest.raises(ValueError, match="skip"):
        with gpt2.trace(LONG):
            gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output)
            inner = gpt2.transformer.h[1].mlp.output.save()


def test_a_module_that_has_run_cannot_be_skipped(gpt2: LanguageModel) -> None:
    with pytest.raises(OutOfOrderError):
        with gpt2.trace(LONG):
            hidden = gpt2.transformer.h[1].output
            gpt2.transformer.h[0].skip(hidden)


def test_a_tuple_module_is_skipped_with_a_tuple(llama: LanguageModel) -> None:
    def zeroed(output):
        return torch.zeros_like(output[0]), None

    with hooked(bare(LLAMA), {"model.layers.1.self_attn": zeroed}):
        expected = bare(LLAMA)(**encoded(LONG), use_cache=False).logits
    with llama.trace(LONG, use_cache=False):
        given = llama.model.layers[1].self_attn.inputs[1]["hidden_states"]
        llama.model.layers[1].self_attn.skip((torch.zeros_like(given), None))
        logits = llama.output.logits.save()
    assert_same(logits, expected)


def test_a_skip_by_one_invoke_leaves_the_others(kind: Kind, model: LanguageModel) -> None:
    before = models.output_of(kind, SECOND, kind.layer(0))
    with hooked(bare(kind), {kind.layer(1): lambda _output: before}):
        expected = bare(kind)(**encoded(SECOND)).logits
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            hidden = model.get(kind.layer(1)).output.save()
            first = model.output.logits.save()
        with tracer.invoke(SECOND):
            model.get(kind.layer(1)).skip(model.get(kind.layer(0)).output)
            second = model.output.logits.save()
    assert_near(hidden, models.output_of(kind, FIRST, kind.layer(1)))
    assert_near(first, models.logits_of(kind, FIRST))
    assert_near(second, expected)


def test_a_skip_by_all_invokes_does_not_run_the_module(own: LanguageModel, kind: Kind) -> None:
    path = kind.layer(1)
    with models.recorded(own._module) as calls:
        with own.trace() as tracer:
            with tracer.invoke(FIRST):
                own.get(path).skip(own.get(kind.layer(0)).output)
            with tracer.invoke(SECOND):
                own.get(path).skip(own.get(kind.layer(0)).output * 2)
                hidden = own.get(kind.layer(2)).input.save()
    assert not [name for name in calls if name.startswith(path)]
    assert_near(hidden, models.output_of(kind, SECOND, kind.layer(0)) * 2)


def test_a_promptless_skip_holds_for_all_rows(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            first = gpt2.transformer.h[2].input.save()
        with tracer.invoke(SECOND):
            second = gpt2.transformer.h[2].input.save()
        with tracer.invoke():
            gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output)
    assert_near(first, models.output_of(GPT2, FIRST, "transformer.h.0"))
    assert_near(second, models.output_of(GPT2, SECOND, "transformer.h.0"))


def test_a_module_is_skipped_in_one_step(gpt2: LanguageModel) -> None:
    state = {"step": -1}

    def count(_args, _kwargs):
        state["step"] += 1

    def change(output):
        return output * 0 if state["step"] == 1 else None

    with hooked(bare(GPT2), {"transformer.h.1.mlp": change}, {"": count}):
        expected = bare(GPT2).generate(**encoded(LONG), max_new_tokens=4, do_sample=False)
    with gpt2.generate(LONG, max_new_tokens=4, do_sample=False) as tracer:
        for _ in tracer.iter[1]:
            given = gpt2.transformer.h[1].mlp.input
            gpt2.transformer.h[1].mlp.skip(given * 0)
        result = tracer.result.save()
    assert_same(result, expected)


def test_skipped_layers_show_in_captured_hidden_states(gpt2: LanguageModel) -> None:
    before = models.output_of(GPT2, LONG, "transformer.h.0")
    with gpt2.trace(LONG, output_hidden_states=True):
        gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output)
        output = gpt2.output.save()
    assert len(output.hidden_states) == 4
    assert_same(output.hidden_states[1], before)
    assert_same(output.hidden_states[2], before)


def test_the_last_skip_holds_as_the_last_write_does(gpt2: LanguageModel) -> None:
    with hooked(bare(GPT2), {"transformer.h.1": lambda out: torch.full_like(out, 2.0)}):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with gpt2.trace(LONG):
        hidden = gpt2.transformer.h[0].output
        gpt2.transformer.h[1].skip(torch.zeros_like(hidden))
        gpt2.transformer.h[1].skip(torch.full_like(hidden, 2.0))
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)


def test_a_skip_of_some_rows_stands_over_an_earlier_one_of_all(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke():
            gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output)
        with tracer.invoke(FIRST):
            gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output * 3)
            first = gpt2.transformer.h[2].input.save()
        with tracer.invoke(SECOND):
            second = gpt2.transformer.h[2].input.save()
    assert_near(first, models.output_of(GPT2, FIRST, "transformer.h.0") * 3)
    assert_near(second, models.output_of(GPT2, SECOND, "transformer.h.0"))


def test_a_skip_of_some_rows_that_does_not_fit_is_refused_at_its_line(gpt2: LanguageModel) -> None:
    with pytest.raises(WriteError, match=r"\(1, 2, 16\).*\(1, 3, 16\)") as caught:
        with gpt2.trace() as tracer:
            with tracer.invoke(FIRST):
                gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output[:, :2])
            with tracer.invoke(SECOND):
                logits = gpt2.output.logits.save()
    function = test_a_skip_of_some_rows_that_does_not_fit_is_refused_at_its_line
    assert caught.traceback[-1].lineno + 1 == function.__code__.co_firstlineno + 4


def test_the_input_of_a_skipped_module_is_what_its_caller_gave(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG):
        given = gpt2.transformer.h[1].input.save()
        gpt2.transformer.h[1].skip(given * 2)
        logits = gpt2.output.logits.save()
    assert_same(given, models.output_of(GPT2, LONG, "transformer.h.0"))
    with hooked(bare(GPT2), {"transformer.h.1": lambda _out: given * 2}):
        assert_same(logits, bare(GPT2)(**encoded(LONG)).logits)


def test_the_whole_model_is_skipped(gpt2: LanguageModel) -> None:
    with models.recorded(gpt2._module) as calls:
        with gpt2.trace(LONG) as tracer:
            gpt2.skip("nothing ran")
            result = tracer.result.save()
    assert result == "nothing ran"
    assert not calls


# full backward hooks, for which torch wraps outputs in views that may not be edited


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int, torch.Tensor]:
        hidden = self.fc(x)
        return hidden, 1, hidden * 2


class _OfPairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = _Pair()
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, _, other = self.pair(x)
        return self.last(one + other)


@pytest.mark.parametrize("register", ["hook", "pre_hook"])
def test_an_output_is_edited_in_place_where_a_backward_hook_stands(register: str) -> None:
    torch.manual_seed(2)
    net = _OfPairs()
    seen = {}
    for module in (net.pair, net.pair.fc):
        getattr(module, f"register_full_backward_{register}")(
            lambda module, *grads: seen.update({module: grads[-1][0].clone()})
        )
    model = NNsight(net)
    x = torch.linspace(-1, 1, 8).reshape(2, 4).requires_grad_()
    with model.trace(x):
        model.pair.fc.output[:, 0] = 0
        before = model.pair.output[2].clone().save()
        model.pair.output[2][:, 1] = 3
        result = model.output.save()
    hidden = net.pair.fc(x).detach().requires_grad_()
    one = hidden.clone()
    one[:, 0] = 0
    other = one * 2
    assert_same(before, other)
    other = other.clone()
    other[:, 1] = 3
    expected = net.last(one + other)
    assert_same(result, expected)
    seen.clear()
    net.zero_grad()
    result.sum().backward()
    weight = net.pair.fc.weight.grad.clone()
    assert len(seen) == 2
    net.zero_grad()
    expected.sum().backward()
    torch.testing.assert_close(weight, hidden.grad.T @ x)
    torch.testing.assert_close(seen[net.pair.fc], hidden.grad)


def test_a_value_read_where_a_backward_hook_stands_is_in_the_graph() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    seen = []
    net[1].register_full_backward_hook(lambda *args: seen.append(args[-1][0].clone()))
    model = NNsight(net)
    x = torch.ones(2, 4, requires_grad=True)
    with model.trace(x):
        result = model[1].output.save()
    result.sum().backward()
    assert_same(seen, [torch.ones(2, 2)])
