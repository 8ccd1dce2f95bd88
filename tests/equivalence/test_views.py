"""The views that invokes are handed: in the graph, without memory that they share."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight, WriteError
from tests.models import GPT2, LLAMA, assert_near, assert_same, bare, encoded, recorded, tokenizer

FIRST, SECOND = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
BOTH = torch.cat([FIRST, SECOND])


class Batched(NNsight):
    """A wrapper of modules whose inputs make a batch as they are."""

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return len(inputs[0]) if inputs else 0

    def _batch(self, invokes: Sequence[Any], fn: Any) -> Any:
        return (torch.cat([inputs[0] for inputs, _ in invokes]),), {}


class Step(nn.Module):
    """Returns what a function makes of its input."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Net(nn.Module):
    """A layer, a step that may do anything with memory, and a layer."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.step = Step(function)
        self.last = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.step(self.first(x))
        return self.last(h[0] if isinstance(h, tuple) else h)


def _twice(h: torch.Tensor) -> torch.Tensor:
    return h * 2


def _pair(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return h * 2, h * 3


def _only(value: Any) -> torch.Tensor:
    found: torch.Tensor = value[0] if isinstance(value, tuple) else value
    return found


@pytest.fixture(params=[_twice, _pair])
def model(request: pytest.FixtureRequest) -> Batched:
    return Batched(Net(request.param))


# in the graph


def _gradient(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The gradient at the step for one input alone."""
    h = _only(net.step(net.first(x))).detach().requires_grad_()
    (grad,) = torch.autograd.grad(net.last(h).pow(2).sum(), h)
    return grad


def test_the_gradient_of_a_view_is_kept(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = _only(model.step.output).save()
            h.retain_grad()
            model.last.output.pow(2).sum().backward(retain_graph=True)
        with tracer.invoke(SECOND):
            other = _only(model.step.output).save()
            other.retain_grad()
            model.last.output.pow(2).sum().backward()
    assert_near(h.grad, _gradient(model._module, FIRST))
    assert_near(other.grad, _gradient(model._module, SECOND))


def test_autograd_finds_a_view_in_the_graph(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = _only(model.step.output)
            loss = model.last.output.pow(2).sum()
            (grad,) = torch.autograd.grad(loss, h, retain_graph=True)
            grad.save()
        with tracer.invoke(SECOND):
            other = _only(model.step.output).save()
            late = model.last.output.pow(2).sum().save()
    assert_near(grad, _gradient(model._module, FIRST))
    assert_near(torch.autograd.grad(late, other)[0], _gradient(model._module, SECOND))


def test_a_hook_on_a_view_that_nobody_keeps_is_called(model: Batched) -> None:
    seen = []
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            _only(model.step.output).register_hook(seen.append)
            model.last.output.pow(2).sum().backward()
        with tracer.invoke(SECOND):
            pass
    assert_near(seen, [_gradient(model._module, FIRST)])


def test_a_view_may_require_a_gradient_under_frozen_parameters(model: Batched) -> None:
    model.requires_grad_(False)
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            pass
        with tracer.invoke(SECOND):
            h = _only(model.step.output).requires_grad_(True).save()
            loss = model.last.output.pow(2).sum().save()
    loss.backward()
    assert_near(h.grad, _gradient(model._module, SECOND))


def test_the_gradient_of_an_input(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            pass
        with tracer.invoke(SECOND):
            h = model.last.input.save()
            loss = model.last.output.pow(2).sum().save()
    assert_near(torch.autograd.grad(loss, h)[0], _gradient(model._module, SECOND))


def test_a_replacement_by_another_invoke_leaves_a_view_in_the_graph(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output.save()
            loss = model.last.output.pow(2).sum().save()
        with tracer.invoke(SECOND):
            model.first.output = model.first.output * 0
            other = model.last.output.save()
    net = model._module
    alone = net.first(FIRST).detach().requires_grad_()
    expected = torch.autograd.grad(net.last(_only(net.step(alone))).pow(2).sum(), alone)
    assert_near(torch.autograd.grad(loss, h), expected)
    assert_near(other, net.last(torch.zeros(2, 3)))


def test_what_is_edited_in_place_is_in_the_graph(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output
            h *= 3
            loss = model.last.output.pow(2).sum()
            (grad,) = torch.autograd.grad(loss, h)
            grad.save()
            loss.save()
        with tracer.invoke(SECOND):
            other = model.last.output.save()
    net = model._module
    alone = (net.first(FIRST) * 3).detach().requires_grad_()
    value = net.last(_only(net.step(alone))).pow(2).sum()
    assert_near(loss, value)
    assert_near(grad, torch.autograd.grad(value, alone)[0])
    assert_near(other, net(SECOND))


def test_a_batch_of_views_is_the_batch(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.step.output
            first = model.output.save()
        with tracer.invoke(SECOND):
            second = model.output.save()
        with tracer.invoke():
            both = model.output.save()
    assert_same(both, torch.cat([first, second]))
    assert_near(both, model._module(BOTH))


def test_views_of_gpt2_have_the_gradients_of_each_prompt_alone() -> None:
    model = LanguageModel(GPT2.new(), tokenizer=tokenizer())
    with model.trace() as tracer:
        with tracer.invoke("the cat"):
            short = model.transformer.h[1].output.save()
            short_loss = model.output.logits[:, -1].pow(2).sum().save()
        with tracer.invoke("the red dog ran"):
            long = model.transformer.h[1].output.save()
            long_loss = model.output.logits[:, -1].pow(2).sum().save()
    for prompt, h, loss in (("the cat", short, short_loss), ("the red dog ran", long, long_loss)):
        with recorded(bare(GPT2), ["transformer.h.1"]) as seen:
            expected = bare(GPT2)(**encoded(prompt)).logits[:, -1].pow(2).sum()
        (grad,) = torch.autograd.grad(loss, h, retain_graph=True)
        assert_near(
            GPT2.own(grad, prompt), torch.autograd.grad(expected, seen["transformer.h.1"])[0]
        )


@pytest.mark.parametrize("location", ["module", "operation"])
def test_views_in_a_checkpointed_part(location: str) -> None:
    model = LanguageModel(GPT2.new(), tokenizer=tokenizer())
    model.train()
    model.config.attn_pdrop = model.config.resid_pdrop = model.config.embd_pdrop = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    options = {"use_reentrant": False}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    with model.trace(use_cache=False) as tracer:
        with tracer.invoke("the cat"):
            if location == "module":
                h = model.transformer.h[1].mlp.output.save()
            else:
                h = model.transformer.h[1].mlp.source.self_c_proj_0.output.save()
            loss = model.output.logits[:, -1].pow(2).sum().save()
        with tracer.invoke("the red dog ran"):
            other = model.transformer.h[1].mlp.output.save()
    with recorded(bare(GPT2), ["transformer.h.1.mlp"]) as seen:
        expected = bare(GPT2)(**encoded("the cat")).logits[:, -1].pow(2).sum()
    (grad,) = torch.autograd.grad(expected, seen["transformer.h.1.mlp"], retain_graph=True)
    parameters = [model.transformer.h[0].mlp.c_fc.weight, model.transformer.wte.weight]
    wanted = [bare(GPT2).transformer.h[0].mlp.c_fc.weight, bare(GPT2).transformer.wte.weight]
    asked = [h, *parameters] if location == "module" else parameters
    found = torch.autograd.grad(loss, asked)
    if location == "module":
        assert_near(GPT2.own(found[0], "the cat"), grad)
    assert_near(found[-2:], torch.autograd.grad(expected, wanted))


class Residual(nn.Module):
    """Uses a value before a layer has it, in the layer, and after it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.step, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.same = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        before = h.exp()
        inside = self.step(h)
        self.same(h)
        return self.last(inside * before + h)


def _is_its_gradient_alone(found: torch.Tensor, net: Residual, x: torch.Tensor) -> None:
    h = net.first(x).detach().requires_grad_()
    net.last(net.step(h) * h.exp() + h).pow(2).sum().backward()
    assert_near(found, h.grad)


@pytest.mark.parametrize("how", ["grad", "retained", "hook", "backward"])
@pytest.mark.parametrize("where", ["first.output", "step.input", "same.output"])
def test_a_gradient_is_that_of_all_that_was_made_of_a_value(where: str, how: str) -> None:
    net = Residual()
    model = Batched(net)
    seen: list[torch.Tensor] = []
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            pass
        with tracer.invoke(SECOND):
            if where == "first.output":
                h = model.first.output.save()
            elif where == "step.input":
                h = model.step.input.save()
            else:
                h = model.same.output.save()
            if how == "hook":
                h.register_hook(seen.append)
            elif how == "retained":
                h.retain_grad()
            loss = model.last.output.pow(2).sum().save()
            if how == "backward":
                with loss.backward():
                    seen.append(h.grad)
    if how == "grad":
        seen.extend(torch.autograd.grad(loss, h))
    elif how != "backward":
        loss.backward()
    if how == "retained":
        seen.append(h.grad)
    assert len(seen) == 1
    _is_its_gradient_alone(seen[0], net, SECOND)


def test_a_hook_on_a_view_changes_its_rows_only() -> None:
    net = Residual()
    model = Batched(net)
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output
            h.register_hook(torch.zeros_like)
            first = model.last.output.sum().save()
        with tracer.invoke(SECOND):
            second = model.last.output.sum().save()
    bias = net.first.bias
    (found,) = torch.autograd.grad(first + second, bias)
    assert_near(found, torch.autograd.grad(net(SECOND).sum(), bias)[0])


def test_a_loss_of_a_view_itself_is_part_of_its_gradient(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output.save()
            h.retain_grad()
            loss = (model.last.output.pow(2).sum() + h.pow(2).sum()).save()
        with tracer.invoke(SECOND):
            pass
    net = model._module
    alone = net.first(FIRST).detach().requires_grad_()
    (net.last(_only(net.step(alone))).pow(2).sum() + alone.pow(2).sum()).backward()
    assert_near(torch.autograd.grad(loss, h, retain_graph=True)[0], alone.grad)
    h.grad = None
    loss.backward(retain_graph=True)
    loss.backward()
    assert_near(h.grad, alone.grad * 2)


def test_a_view_among_the_inputs_of_a_backward_pass(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output.save()
            loss = model.last.output.pow(2).sum().save()
        with tracer.invoke(SECOND):
            pass
    net = model._module
    loss.backward(inputs=[h, net.last.bias], retain_graph=True)
    loss.backward(inputs=h)
    alone = net.first(FIRST).detach().requires_grad_()
    value = net.last(_only(net.step(alone))).pow(2).sum()
    expected = torch.autograd.grad(value, [alone, net.last.bias])
    assert_near([h.grad, net.last.bias.grad], [expected[0] * 2, expected[1]])
    assert net.first.bias.grad is None


def test_a_retained_gradient_is_that_of_what_an_edit_in_place_has_made(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output.save()
            h.retain_grad()
            h *= 3
            model.last.output.pow(2).sum().backward()
        with tracer.invoke(SECOND):
            pass
    net = model._module
    alone = (net.first(FIRST) * 3).detach().requires_grad_()
    net.last(_only(net.step(alone))).pow(2).sum().backward()
    assert_near(h.grad, alone.grad)


def test_gradients_of_other_tensors_are_what_they_were(model: Batched) -> None:
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output.save()
            loss = model.last.output.sum().save()
        with tracer.invoke(SECOND):
            pass
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.retain_grad()
    y.register_hook(lambda gradient: gradient * 5)
    y.sum().backward()
    assert x.grad.tolist() == [10, 10]
    assert y.grad.tolist() == [5, 5]
    named = torch.autograd.grad(loss, {"h": h}, retain_graph=True)
    assert_same(named["h"], torch.autograd.grad(loss, [h])[0])


# an edit in place, later


class Late(nn.Module):
    """Uses a value once more after another layer has had it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        self.between(h)
        return self.last(h)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("location", ["output", "input"])
def test_a_later_edit_in_place_reaches_what_the_model_computes_after_it(
    location: str, grad: bool
) -> None:
    net = Late()
    model = Batched(net)
    with torch.set_grad_enabled(grad), model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output if location == "output" else model.between.input
            between = model.between.output.save()
            h *= 3
            late = model.last.output.save()
        with tracer.invoke(SECOND):
            kept = model.first.output.save()
            given = model.between.input.save()
            other = model.last.output.save()
    assert_near(between, net.between(net.first(FIRST)))
    assert_near(late, net.last(net.first(FIRST) * 3))
    assert_near(other, net(SECOND))
    if grad:
        expected = torch.autograd.grad(net(FIRST).sum() * 9, net.first.bias)
        assert_near(torch.autograd.grad(late.sum() * 3, net.first.bias), expected)


def test_a_later_edit_of_all_rows_reaches_what_the_model_computes_after_it() -> None:
    net = Late()
    model = Batched(net)
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.first.output.save()
            first = model.last.output.save()
        with tracer.invoke(SECOND):
            second = model.last.output.save()
        with tracer.invoke():
            everything = model.first.output
            between = model.between.output
            everything *= 3
            both = model.last.output.save()
    assert_near(both, net.last(net.first(BOTH) * 3))
    assert_same(both, torch.cat([first, second]))
    (grad,) = torch.autograd.grad(first.sum(), h)
    assert grad.any()


def test_an_edit_that_the_model_makes_is_not_the_blocks() -> None:
    class Adding(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = self.first(x)
            h = self.step(both)
            both += 1
            return self.last(h)

    net = Adding()
    net.first, net.last = nn.Linear(3, 6), nn.Linear(3, 3)
    net.step = Step(lambda both: both[:, :3])
    model = Batched(net)
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            h = model.step.output.save()
            first = model.last.output.save()
        with tracer.invoke(SECOND):
            model.step.output = model.step.output * 1
            second = model.last.output.save()
    assert first.shape == FIRST.shape and second.shape == SECOND.shape


# memory


def _expanded(h: torch.Tensor) -> torch.Tensor:
    return h[:1].expand(len(h), -1)


def _overlapping(h: torch.Tensor) -> torch.Tensor:
    return h.flatten().as_strided((len(h), 3), (1, 1))


def _unfolded(h: torch.Tensor) -> torch.Tensor:
    return h.flatten()[: len(h) + 2].unfold(0, 3, 1)


def _pair_of_one(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    one = _expanded(h)
    return one, one


SHARING = [_expanded, _overlapping, _unfolded, _pair_of_one]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("function", SHARING)
def test_an_edit_of_rows_that_share_memory_stays_in_its_rows(
    function: Callable[[torch.Tensor], Any], grad: bool
) -> None:
    net = Net(function)
    model = Batched(net)
    with torch.set_grad_enabled(grad):
        expected = _only(function(net.first(BOTH))).clone()
        with model.trace() as tracer:
            with tracer.invoke(FIRST):
                h = _only(model.step.output)
                h[:] = 0
                first = model.last.output.save()
            with tracer.invoke(SECOND):
                h = _only(model.step.output).clone().save()
                second = model.last.output.save()
    assert_near(first, net.last(torch.zeros(1, 3)))
    assert_same(h, expected[1:])
    assert_near(second, net.last(expected[1:]))


def test_a_tensor_twice_in_a_tuple_stays_one_tensor() -> None:
    model = Batched(Net(_pair_of_one))
    with model.trace() as tracer:
        with tracer.invoke(FIRST):
            one, other = model.step.output
            one += 1
            same = torch.equal(one, other).save()
        with tracer.invoke(SECOND):
            second = model.last.output.save()
    assert same


@pytest.mark.parametrize(
    "function", [lambda h: h.t().contiguous().t(), lambda h: h.repeat(1, 2)[:, ::2], _twice]
)
def test_rows_with_memory_of_their_own_are_not_copied(
    function: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    seen = []
    net = Net(function)
    net.step.register_forward_hook(lambda *call: seen.append(call[2].data_ptr()))
    model = Batched(net)
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = model.step.output.data_ptr().save()
        with tracer.invoke(SECOND):
            pass
    assert seen == [first]


# what has no rows


def test_an_edit_in_place_of_what_has_no_rows_is_refused() -> None:
    model = LanguageModel(LLAMA.new(), tokenizer=tokenizer())
    with pytest.raises(WriteError, match=r"rotary_emb.output that has no rows was edited in place"):
        with model.trace() as tracer:
            with tracer.invoke("the cat"):
                cos, sin = model.model.rotary_emb.output
                cos *= 0
                logits = model.output.logits.save()
            with tracer.invoke("a dog"):
                other = model.output.logits.save()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", ["parameter", "part of a parameter", "buffer", "part of a buffer"])
def test_a_parameter_or_buffer_as_long_as_the_batch_has_no_rows(kind: str, grad: bool) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))
            self.register_buffer("table", torch.ones(3, 3))
            self.long = nn.Parameter(torch.ones(5, 3))
            self.register_buffer("rows", torch.ones(5, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = {
                "parameter": self.weight,
                "part of a parameter": self.long[:3],
                "buffer": self.table,
                "part of a buffer": self.rows[:3],
            }[kind]
            return found

    net = Net(_twice)
    net.step = Own()
    model = Batched(net)
    with torch.set_grad_enabled(grad), model.trace() as tracer:
        with tracer.invoke(FIRST):
            first = model.step.output.shape.save()
        with tracer.invoke(SECOND):
            second = model.step.output.shape.save()
    assert first == second == (3, 3)


def test_a_parameter_expanded_over_the_batch_has_rows() -> None:
    class Prompt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.token.expand(len(x), -1)

    net = Net(_twice)
    net.step = Prompt()
    model = Batched(net)
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(FIRST):
            model.step.output[:] = 0
            first = model.last.output.save()
        with tracer.invoke(SECOND):
            second = model.last.output.save()
    assert_near(first, net.last(torch.zeros(1, 3)))
    assert_near(second, net.last(torch.ones(2, 3)))
    assert net.step.token.all()
