"""Operations inside a forward: a block reads and changes there what a module made by hand does."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from nnsight_dsl import (
    LanguageModel,
    NNsight,
    NotCalledError,
    OutOfOrderError,
    PathError,
    WriteError,
)
from nnsight_dsl.runtime.tapping.operations import spot_of

CITY_FACTS = Path(__file__).parents[2] / "examples" / "models" / "city-facts"
X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Part(nn.Module):
    """A forward with operations of each kind, and a branch that is not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.scale = 3.0

    def forward(self, x: torch.Tensor, *, flipped: bool = False) -> torch.Tensor:
        hidden = self.up(x)
        if flipped:
            hidden = torch.flip(hidden, dims=(0,))
        gate = torch.sigmoid(hidden[:, :2])
        mixed = helper(hidden, weight=self.scale)
        mixed += torch.cat([gate, gate], dim=1)
        return x + functional.gelu(mixed) @ self.up.weight


def helper(value: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """What a forward calls: a Python function with operations of its own."""
    centred = value - value.mean()
    return centred * weight


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Part()
        self.second = Part()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.fixture
def parts() -> Iterator[NNsight]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        yield NNsight(Net().eval())


def by_hand(part: Any, x: torch.Tensor, **replaced: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute a part's forward step by step, with some of its values replaced."""
    found: dict[str, torch.Tensor] = {}

    def step(name: str, value: torch.Tensor) -> torch.Tensor:
        found[name] = replaced.get(name, value)
        return found[name]

    hidden = step("hidden", step("self_up_0", part.up(x)))
    gate = step("gate", step("torch_sigmoid_0", torch.sigmoid(step("getitem_0", hidden[:, :2]))))
    mixed = step("mixed", step("helper_0", helper(hidden, weight=part.scale)))
    mixed = step("mixed_1", step("iadd_0", mixed + torch.cat([gate, gate], dim=1)))
    product = step("matmul_0", step("functional_gelu_0", functional.gelu(mixed)) @ part.up.weight)
    step("return_0", step("add_0", x + product))
    return found


NAMES = (
    "self_up_0 hidden getitem_0 torch_sigmoid_0 gate helper_0 mixed iadd_0 mixed_1 "
    "functional_gelu_0 matmul_0 add_0 return_0"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_read(parts: NNsight, name: str) -> None:
    expected = by_hand(parts._module.first, X)[name]
    with parts.trace(X):
        found = getattr(parts.first.source, name).output.clone().save()
    # the in-place sum goes on in the tensor that was there before
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_replaced(parts: NNsight, name: str) -> None:
    value = by_hand(parts._module.first, X)[name]
    new = torch.full_like(value, 0.5)
    expected = by_hand(parts._module.first, X, **{name: new.clone()})["return_0"]
    with parts.trace(X):
        getattr(parts.first.source, name).output = new.clone()
        found = parts.first.output.save()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["self_up_0", "getitem_0", "torch_sigmoid_0", "helper_0", "add_0"])
def test_operations_are_skipped(parts: NNsight, name: str) -> None:
    value = by_hand(parts._module.first, X)[name]
    new = torch.full_like(value, 0.25)
    expected = by_hand(parts._module.first, X, **{name: new.clone()})["return_0"]
    with parts.trace(X):
        getattr(parts.first.source, name).skip(new.clone())
        found = parts.first.output.save()
    assert torch.equal(found, expected)


def test_a_skipped_operation_is_not_done(parts: NNsight) -> None:
    calls: list[int] = []
    handle = parts._module.first.up.register_forward_hook(lambda *_: calls.append(1))
    with parts.trace(X):
        parts.first.source.self_up_0.skip(X)
        parts.first.output.save()
    handle.remove()
    assert calls == []


def test_arguments_are_read_and_replaced(parts: NNsight) -> None:
    part = parts._module.first
    values = by_hand(part, X)
    with parts.trace(X):
        given = parts.first.source.helper_0.inputs.save()
        parts.first.source.helper_0.inputs = (given[0], {"weight": 2.0})
        found = parts.first.source.helper_0.output.clone().save()
    args, kwargs = given
    assert torch.equal(args[0], values["hidden"])
    assert kwargs == {"weight": 3.0}
    assert torch.equal(found, helper(values["hidden"], weight=2.0))


def test_the_operands_of_an_operator_are_its_inputs(parts: NNsight) -> None:
    values = by_hand(parts._module.first, X)
    with parts.trace(X):
        given = parts.first.source.add_0.inputs.save()
        first = parts.second.source.self_up_0.input.save()
    (left, right), kwargs = given
    assert torch.equal(left, X)
    assert torch.equal(right, values["matmul_0"])
    assert kwargs == {}
    assert torch.equal(first, values["return_0"])


def test_an_edit_in_place_reaches_what_comes_after(parts: NNsight) -> None:
    gone = torch.zeros(2, 4)
    expected = by_hand(parts._module.first, X, self_up_0=gone)["return_0"]
    with parts.trace(X):
        parts.first.source.self_up_0.output[:] = 0
        found = parts.first.output.save()
    assert torch.equal(found, expected)


def test_the_inside_of_a_called_function(parts: NNsight) -> None:
    hidden = by_hand(parts._module.first, X)["hidden"]
    with parts.trace(X):
        centred = parts.first.source.helper_0.source.centred.output.save()
        parts.first.source.helper_0.source.mul_0.output *= 2
        found = parts.first.source.mixed.output.clone().save()
    assert torch.equal(centred, hidden - hidden.mean())
    assert torch.equal(found, helper(hidden, weight=3.0) * 2)


def test_the_inside_of_torchs_own_functions() -> None:
    model = NNsight(nn.LayerNorm(4))
    with torch.no_grad(), model.trace(X):
        inner = model.source.F_layer_norm_0.source.torch_layer_norm_0
        args = inner.inputs[0].save()
        found = inner.output.save()
    assert torch.equal(args[0], X)
    assert torch.equal(found, functional.layer_norm(X, (4,)))


def test_only_the_module_that_is_asked_for_is_tapped(parts: NNsight) -> None:
    first, second = parts._module.first, parts._module.second
    seen: list[tuple[bool, bool]] = []

    def look(*_: Any) -> None:
        seen.append(("forward" in first.__dict__, "forward" in second.__dict__))

    handles = [part.up.register_forward_hook(look) for part in (first, second)]
    with parts.trace(X):
        parts.first.source.helper_0.output.save()
    for handle in handles:
        handle.remove()
    assert seen == [(True, False), (False, False)]
    assert first.forward.__func__ is Part.forward


def test_nothing_is_left_behind_by_a_run_that_fails(parts: NNsight) -> None:
    before = {**parts._module.first.__dict__}
    with pytest.raises(RuntimeError):
        with parts.trace(X):
            parts.first.source.hidden.output = torch.ones(3, 7)
    assert parts._module.first.__dict__ == before
    assert torch.equal(parts._module.first(X), by_hand(parts._module.first, X)["return_0"])


def test_names_that_other_releases_give_to_locals(parts: NNsight) -> None:
    with parts.trace(X):
        found = parts.first.source.mixed_0.output.clone().save()
    assert torch.equal(found, by_hand(parts._module.first, X)["mixed"])


def test_operations_of_a_module_that_is_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.part(self.part(x))

    with torch.no_grad():
        model = NNsight(Twice())
        with model.trace(X) as tracer:
            seen = [].save()
            for _ in tracer.iter[:2]:
                seen.append(model.part.source.add_0.output)
        once = by_hand(model._module.part, X)["return_0"]
        assert torch.equal(seen[0], once)
        assert torch.equal(seen[1], by_hand(model._module.part, once)["return_0"])


# language models


@pytest.fixture(scope="module")
def city() -> LanguageModel:
    return LanguageModel(str(CITY_FACTS), attn_implementation="eager", dispatch=True)


def test_attention_weights_are_those_that_the_model_returns(city: LanguageModel) -> None:
    prompt = "The Eiffel Tower is in the city of"
    ids = city.tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        expected = city._module(**ids, output_attentions=True).attentions
        with city.trace(prompt):
            found = [
                city.transformer.h[i].attn.source.attention_interface_0.output[1]
                for i in range(len(expected))
            ].save()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return transformers.LlamaForCausalLM(config).eval()


def test_attention_weights_of_llama_inside_the_function_that_computes_them() -> None:
    module = llama()
    model, ids = NNsight(module), torch.arange(6)[None]
    with torch.no_grad():
        expected = module(ids, output_attentions=True).attentions
        with model.trace(ids):
            attention = model.model.layers[1].self_attn.source.attention_interface_0
            found = attention.source.nn_functional_softmax_0.output.save()
    assert torch.equal(found, expected[1])


def test_edited_attention_is_that_of_an_edited_module() -> None:
    module = llama()
    model, ids = NNsight(module), torch.arange(6)[None]
    even = torch.full((1, 2, 6, 6), 1 / 6)
    with torch.no_grad():
        with model.trace(ids):
            attention = model.model.layers[0].self_attn.source.attention_interface_0
            attention.source.nn_functional_dropout_0.output = even
            found = model.output.logits.save()
        softmax = functional.softmax
        calls = []

        def evenly(*args: Any, **kwargs: Any) -> torch.Tensor:
            calls.append(1)
            return even if len(calls) == 1 else softmax(*args, **kwargs)

        functional.softmax = evenly  # type: ignore[assignment]
        try:
            expected = module(ids).logits
        finally:
            functional.softmax = softmax
    assert torch.equal(found, expected)


def test_invokes_see_their_rows_of_an_operation(city: LanguageModel) -> None:
    prompts = ["The Eiffel Tower is in the city of", "The Colosseum is in"]
    alone = []
    with torch.no_grad():
        for prompt in prompts:
            with city.trace(prompt):
                alone.append(city.transformer.h[1].attn.source.self_c_proj_0.output[:, -1].save())
        with city.trace() as tracer:
            with tracer.invoke(prompts[0]):
                first = city.transformer.h[1].attn.source.self_c_proj_0.output[:, -1].clone().save()
                city.transformer.h[1].attn.source.self_c_proj_0.output[:] = 0
                changed = city.transformer.h[1].attn.output[0].save()
            with tracer.invoke(prompts[1]):
                second = city.transformer.h[1].attn.source.self_c_proj_0.output[:, -1].save()
                kept = city.transformer.h[1].attn.output[0].save()
    assert torch.allclose(first, alone[0], atol=1e-5)
    assert torch.allclose(second, alone[1], atol=1e-5)
    assert changed.abs().max() == 0
    assert kept.abs().max() > 0


def test_operations_in_each_step_of_a_generation(city: LanguageModel) -> None:
    with city.generate("The Eiffel Tower is in", max_new_tokens=3, do_sample=False) as tracer:
        shapes = [].save()
        for _ in tracer.iter[:]:
            shapes.append(city.transformer.h[0].attn.source.attention_interface_0.output[1].shape)
    assert len(shapes) == 3
    assert [shape[2] for shape in shapes[1:]] == [1, 1]


def test_operations_are_cached(city: LanguageModel) -> None:
    operation = city.transformer.h[0].attn.source.self_c_proj_0
    with city.trace("The Colosseum is in") as tracer:
        cache = tracer.cache(modules=[operation, city.transformer.h[1]])
        expected = city.transformer.h[0].attn.source.self_c_proj_0.output.save()
    assert list(cache) == [
        "model.transformer.h.0.attn.source.self_c_proj_0",
        "model.transformer.h.1",
    ]
    kept = cache["model.transformer.h.0.attn.source.self_c_proj_0"].output
    assert torch.equal(kept, expected)


def test_edits_of_operations_stay_with_the_edited_model(city: LanguageModel) -> None:
    with city.edit() as edited:
        edited.transformer.h[0].attn.source.self_c_proj_0.output[:] = 0
    with edited.trace("The Colosseum is in"):
        changed = edited.transformer.h[0].attn.output[0].save()
    with city.trace("The Colosseum is in"):
        plain = city.transformer.h[0].attn.output[0].save()
    assert changed.abs().max() == 0
    assert plain.abs().max() > 0


def test_a_forward_that_accelerate_has_wrapped(parts: NNsight) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubling(ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return output * 2

    part = parts._module.first
    expected = by_hand(part, X)
    add_hook_to_module(part, Doubling())
    before = {**part.__dict__}
    try:
        with parts.trace(X):
            inner = parts.first.source.add_0.output.save()
            outer = parts.first.output.save()
        assert part.__dict__ == before
    finally:
        remove_hook_from_module(part)
    assert torch.equal(inner, expected["add_0"])
    assert torch.equal(outer, expected["add_0"] * 2)


# what goes wrong


def test_a_name_that_does_not_exist_has_its_nearest(parts: NNsight) -> None:
    with pytest.raises(
        PathError, match="first has no operation 'helper_1'; did you mean 'helper_0'"
    ):
        with parts.trace(X):
            parts.first.source.helper_1.output.save()


def test_a_name_that_does_not_exist_inside_of_a_called_function(parts: NNsight) -> None:
    with pytest.raises(PathError, match=r"helper_0 \(helper\) has no operation 'centre'"):
        with parts.trace(X):
            parts.first.source.helper_0.source.centre.output.save()


def test_a_module_in_a_source_has_a_source_of_its_own(parts: NNsight) -> None:
    with pytest.raises(PathError, match=r"write model\.first\.up\.source"):
        with parts.trace(X):
            parts.first.source.self_up_0.source.F_linear_0.output.save()


def test_a_function_in_c_has_no_inside(parts: NNsight) -> None:
    with pytest.raises(PathError, match="C function and has no operations inside"):
        with parts.trace(X):
            parts.first.source.torch_sigmoid_0.source.exp_0.output.save()


def test_an_operation_in_a_branch_that_is_not_taken(parts: NNsight) -> None:
    with pytest.raises(NotCalledError, match="was not done: it stands in a branch"):
        with parts.trace(X):
            parts.first.source.torch_flip_0.output.save()


@pytest.mark.usefixtures("unlinted")
def test_an_operation_that_has_passed(parts: NNsight) -> None:
    with pytest.raises(OutOfOrderError):
        with parts.trace(X):
            parts.first.source.helper_0.output.save()
            parts.first.source.hidden.output.save()


def test_an_operation_that_is_not_expected_in_a_call_that_runs(parts: NNsight) -> None:
    with pytest.raises(OutOfOrderError, match="already running, and was not expected"):
        with parts.trace(X):
            parts.first.up.output.save()
            part = next(iter([parts])).first
            part.source.helper_0.output.save()


def test_an_attribute_that_an_operation_does_not_have(parts: NNsight) -> None:
    with pytest.raises(PathError, match="has no attribute 'outputs'"):
        parts.first.source.helper_0.outputs
    with pytest.raises(AttributeError, match="cannot be set"):
        parts.first.source.helper_0.weight = 1


def test_an_edit_in_a_checkpointed_part_is_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = Part()

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.part, x, use_reentrant=False)

    model = NNsight(Checkpointed())
    with model.trace(X.clone().requires_grad_()):
        read = model.part.source.hidden.output.save()
    assert torch.equal(read, model._module.part.up(X))
    with pytest.raises(WriteError, match="inside of a checkpointed part"):
        with model.trace(X.clone().requires_grad_()):
            model.part.source.hidden.output = torch.zeros(2, 4)


# printing


def test_a_source_is_printed_beside_its_text(parts: NNsight) -> None:
    lines = str(parts.first.source).splitlines()
    (line,) = (one for one in lines if one.startswith("torch_sigmoid_0 "))
    assert "->" in line
    (first,) = (one for one in lines if one.startswith("getitem_0 "))
    assert first.endswith("gate = torch.sigmoid(hidden[:, :2])")
    assert "\x1b" not in str(parts.first.source)


def test_a_source_marks_what_the_last_run_did_not_do(parts: NNsight) -> None:
    assert "not done" not in str(parts.first.source)
    with parts.trace(X):
        parts.first.source.hidden.output.save()
    marked = [one.split()[0] for one in str(parts.first.source).splitlines() if "(not done)" in one]
    assert marked == ["torch_flip_0", "hidden_1"]


def test_one_operation_is_printed_in_its_context(parts: NNsight) -> None:
    text = str(parts.first.source.helper_0)
    assert text.startswith("first.source.helper_0:")
    (marked,) = (one for one in text.splitlines() if one.startswith("-->"))
    assert marked.endswith("mixed = helper(hidden, weight=self.scale)")


def test_names_of_operations_are_listed(parts: NNsight) -> None:
    assert [name for name in parts.first.source if name in NAMES] == NAMES
    assert "helper_0" in parts.first.source
    assert "helper_0" in dir(parts.first.source)


def test_a_forward_without_text_has_its_operations() -> None:
    names: dict[str, Any] = {"nn": nn, "torch": torch}
    exec(
        "class Bare(nn.Module):\n    def forward(self, x):\n        return torch.exp(x) + 1\n",
        names,
    )
    linecache.clearcache()
    model = NNsight(names["Bare"]())
    with model.trace(X):
        found = model.source.torch_exp_0.output.save()
    assert torch.equal(found, torch.exp(X))
    assert "torch_exp_0" in str(model.source)


def test_what_a_run_has_seen_is_kept_with_the_module(parts: NNsight) -> None:
    with parts.trace(X):
        parts.first.source.helper_0.source.centred.output.save()
    spot = spot_of(parts._module.first, ("helper_0",))
    assert spot.function is helper
    assert spot.ran["centred"]


# patched forwards


class _Other:
    """A forward that is an object."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.part.up(x))


def test_the_forward_in_force_is_the_one_whose_operations_are_meant(
    parts: NNsight, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = parts._module.first

    def relu_of(model: NNsight) -> torch.Tensor:
        with model.trace(X):
            seen = model.first.source.torch_relu_0.output.save()
        return seen

    def gate_of(model: NNsight) -> torch.Tensor:
        with model.trace(X):
            seen = model.first.source.gate.output.save()
        return seen

    def patched(self: Part, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.up(x)) * 2

    relu, gate = torch.relu(first.up(X)), by_hand(first, X)["gate"]
    assert torch.equal(gate_of(parts), gate)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Part, "forward", patched)
            assert torch.equal(relu_of(parts), relu)
            with pytest.raises(PathError, match="gate"):
                gate_of(parts)
            patch.setitem(first.__dict__, "forward", _Other(first))
            assert torch.equal(relu_of(parts), relu)
        assert torch.equal(gate_of(parts), gate)


def test_a_forward_that_replaces_itself_stays_replaced(parts: NNsight) -> None:
    first = parts._module.first

    def once(x: torch.Tensor) -> torch.Tensor:
        del first.forward
        return first.forward(x)

    first.forward = once
    with parts.trace(X):
        seen = parts.first.source.return_0.output.save()
    assert "forward" not in first.__dict__
    assert torch.equal(seen, first(X))


# objects that are called


class Processor:
    """Does the work of a module, as diffusers' attention processors do."""

    scale = 2.0

    def __call__(self, part: Any, x: torch.Tensor) -> torch.Tensor:
        return helper(torch.relu(x), weight=self.scale)


class Processed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.processor: Any = type("Own", (Processor,), {"scale": 3.0})()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.processor(self, x) + 1


def test_the_inside_of_an_object_that_is_called() -> None:
    net = nn.Sequential(Processed())
    model = NNsight(net)
    relu = torch.relu(X)
    for _ in range(2):
        with model.trace(X):
            seen = model[0].source.self_processor_0.source.torch_relu_0.output.save()
            centred = model[0].source.self_processor_0.source.helper_0.source.centred.output.save()
            model[0].source.self_processor_0.source.helper_0.output = seen
            result = model[0].output.save()
        assert torch.equal(seen, relu)
        assert torch.equal(centred, relu - relu.mean())
        assert torch.equal(result, relu + 1)
    assert torch.equal(net(X), helper(relu, weight=3.0) + 1)
    assert "self_processor_0" in model[0].source


# skips that are asked for late


def test_an_operation_is_skipped_with_a_value_of_the_same_forward(parts: NNsight) -> None:
    found = by_hand(parts._module.first, X)
    new = found["self_up_0"] * 2
    expected = by_hand(parts._module.first, X, functional_gelu_0=new)["return_0"]
    for _ in range(2):
        with parts.trace(X):
            hidden = parts.first.up.output
            parts.first.source.functional_gelu_0.skip(hidden * 2)
            result = parts.first.output.save()
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_of_a_skipped_operation_is_read_and_changed(parts: NNsight, name: str) -> None:
    new = by_hand(parts._module.first, X)[name] * 2
    expected = by_hand(parts._module.first, X, **{name: new * 2})["return_0"]
    for _ in range(2):
        with parts.trace(X):
            operation = getattr(parts.first.source, name)
            operation.skip(new.clone())
            seen = operation.output.save()
            operation.output = operation.output * 2
            result = parts.first.output.save()
        assert torch.equal(seen, new)
        assert torch.equal(result, expected)
