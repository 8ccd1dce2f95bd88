"""The state around a block: grad mode, autocast and modes, the model's and the block's own."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from nnsight_dsl import LanguageModel, NNsight
from tests import models
from tests.models import GPT2, LONG, Kind, assert_same, bare, encoded, hooked

FIRST = "the cat sat"
SECOND = "a red bird"


def _states(module: nn.Module, paths):
    """Record the state in which submodules are called."""
    states = {}

    def keep(path):
        def record(args, kwargs):
            states[path] = (
                torch.is_grad_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.is_inference_mode_enabled(),
            )

        return record

    return hooked(module, before={path: keep(path) for path in paths}), states


LAYERS = [f"transformer.h.{i}" for i in range(3)]
PLAIN = dict.fromkeys(LAYERS, (True, False, False))


# gradients


def test_gradients_flow_through_saved_values(kind: Kind) -> None:
    module = kind.new()
    module(**encoded(LONG)).logits.sum().backward()
    expected = {name: parameter.grad for name, parameter in module.named_parameters()}
    model = LanguageModel(kind.new(), tokenizer=models.tokenizer())
    with model.trace(LONG):
        hidden = model.get(kind.layer(1)).output
        logits = model.output.logits.save()
    logits.sum().backward()
    for name, parameter in model._module.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name])


def test_gradients_flow_to_an_intermediate_value(kind: Kind, model: LanguageModel) -> None:
    path = kind.layer(1)
    with models.recorded(bare(kind), [path]) as seen:
        logits = bare(kind)(**encoded(LONG)).logits
    (expected,) = torch.autograd.grad(logits.square().sum(), seen[path][0])
    with model.trace(LONG):
        hidden = model.get(path).output.save()
        logits = model.output.logits.save()
    (gradient,) = torch.autograd.grad(logits.square().sum(), hidden)
    assert_same(gradient, expected)


def test_gradients_flow_through_a_replacement(kind: Kind, model: LanguageModel) -> None:
    path = kind.layer(1)
    scale = torch.ones(16, requires_grad=True)
    with hooked(bare(kind), {path: lambda output: output * scale}):
        logits = bare(kind)(**encoded(LONG)).logits
    (expected,) = torch.autograd.grad(logits.square().sum(), scale)
    with model.trace(LONG):
        model.get(path).output = model.get(path).output * scale
        logits = model.output.logits.save()
    (gradient,) = torch.autograd.grad(logits.square().sum(), scale)
    assert_same(gradient, expected)
    assert gradient.any()


def test_gradients_flow_through_a_replacement_of_some_rows(gpt2: LanguageModel) -> None:
    scale = torch.ones(16, requires_grad=True)
    with hooked(bare(GPT2), {"transformer.h.1": lambda output: output * scale}):
        logits = bare(GPT2)(**encoded(SECOND)).logits
    (expected,) = torch.autograd.grad(logits.square().sum(), scale)
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            first = gpt2.output.logits.save()
        with tracer.invoke(SECOND):
            gpt2.transformer.h[1].output = gpt2.transformer.h[1].output * scale
            second = gpt2.output.logits.save()
    (gradient,) = torch.autograd.grad(second.square().sum(), scale, retain_graph=True)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)
    (none,) = torch.autograd.grad(first.square().sum(), scale, allow_unused=True)
    assert none is None or not none.any()


def test_a_trace_under_no_grad_builds_no_graph(gpt2: LanguageModel) -> None:
    with torch.no_grad():
        with gpt2.trace(LONG):
            hidden = gpt2.transformer.h[1].output.save()
            enabled = [torch.is_grad_enabled()].save()
            logits = gpt2.output.logits.save()
    assert enabled == [False]
    assert not hidden.requires_grad
    assert not logits.requires_grad
    assert_same(logits, models.logits_of(GPT2, LONG).detach())


def test_a_generation_serves_its_block_without_grad(gpt2: LanguageModel) -> None:
    with gpt2.generate(LONG, max_new_tokens=2, do_sample=False) as tracer:
        enabled = [].save()
        for _ in tracer.iter[:]:
            hidden = gpt2.transformer.h[1].output
            enabled.append((torch.is_grad_enabled(), hidden.requires_grad))
    assert enabled == [(False, False), (False, False)]
    assert torch.is_grad_enabled()


def test_a_block_runs_in_the_state_of_the_module_that_serves_it() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)

        def forward(self, x):
            with torch.no_grad():
                x = self.first(x)
            return self.second(x)

    model = NNsight(Half())
    with model.trace(torch.ones(1, 3)):
        enabled = [].save()
        first = model.first.output
        enabled.append(torch.is_grad_enabled())
        second = model.second.output
        enabled.append(torch.is_grad_enabled())
    assert enabled == [False, True]


# what a block changes for itself


def test_no_grad_in_a_block_does_not_reach_the_model(gpt2: LanguageModel) -> None:
    watch, states = _states(gpt2._module, LAYERS)
    with watch:
        with gpt2.trace(LONG):
            with torch.no_grad():
                hidden = gpt2.transformer.h[0].output
                inside = [torch.is_grad_enabled()].save()
                doubled = (hidden * 2).save()
                later = gpt2.transformer.h[1].output
                inside.append(torch.is_grad_enabled())
            outside = [torch.is_grad_enabled()].save()
            tripled = (later * 3).save()
            logits = gpt2.output.logits.save()
    assert states == PLAIN
    assert inside == [False, False]
    assert outside == [True]
    assert not doubled.requires_grad
    assert tripled.requires_grad
    assert logits.requires_grad
    assert torch.is_grad_enabled()


def test_a_write_under_no_grad_cuts_the_graph_there_only(gpt2: LanguageModel) -> None:
    def change(output):
        with torch.no_grad():
            return output * 2

    with hooked(bare(GPT2), {"transformer.h.1": change}):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with gpt2.trace(LONG):
        embedded = gpt2.transformer.wte.output.save()
        with torch.no_grad():
            gpt2.transformer.h[1].output = gpt2.transformer.h[1].output * 2
        late = gpt2.transformer.h[2].output.save()
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)
    total = logits.square().sum()
    (cut,) = torch.autograd.grad(total, embedded, allow_unused=True, retain_graph=True)
    (kept,) = torch.autograd.grad(total, late)
    assert cut is None
    assert kept.any()


def test_enable_grad_in_a_block_does_not_reach_the_model(gpt2: LanguageModel) -> None:
    watch, states = _states(gpt2._module, LAYERS)
    with torch.no_grad(), watch:
        with gpt2.trace(LONG):
            with torch.enable_grad():
                hidden = gpt2.transformer.h[0].output
                inside = [torch.is_grad_enabled()].save()
                later = gpt2.transformer.h[1].output
                inside.append(torch.is_grad_enabled())
            logits = gpt2.output.logits.save()
    assert states == dict.fromkeys(LAYERS, (False, False, False))
    assert inside == [True, True]
    assert not logits.requires_grad


def test_autocast_in_a_block_does_not_reach_the_model(gpt2: LanguageModel) -> None:
    watch, states = _states(gpt2._module, LAYERS)
    weight = torch.eye(16)
    with watch:
        with gpt2.trace(LONG):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hidden = gpt2.transformer.h[0].output
                product = (hidden @ weight).save()
                later = gpt2.transformer.h[1].output
                again = (later @ weight).save()
            outside = (later @ weight).save()
            logits = gpt2.output.logits.save()
    assert states == PLAIN
    assert product.dtype == again.dtype == torch.bfloat16
    assert outside.dtype == torch.float32
    assert_same(logits, models.logits_of(GPT2, LONG))
    assert not torch.is_autocast_enabled("cpu")


def test_a_trace_under_autocast_runs_the_model_in_it(gpt2: LanguageModel) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = bare(GPT2)(**encoded(LONG)).logits
        with gpt2.trace(LONG):
            part = gpt2.transformer.h[0].mlp.c_fc.output.save()
            logits = gpt2.output.logits.save()
    assert part.dtype == torch.bfloat16
    assert_same(logits, expected)


def test_inference_mode_in_a_block_does_not_reach_the_model(gpt2: LanguageModel) -> None:
    watch, states = _states(gpt2._module, LAYERS)
    with watch:
        with gpt2.trace(LONG):
            with torch.inference_mode():
                hidden = gpt2.transformer.h[0].output
                inside = [torch.is_inference_mode_enabled()].save()
                doubled = (hidden * 2).save()
                later = gpt2.transformer.h[1].output
                inside.append(torch.is_inference_mode_enabled())
            outside = [torch.is_inference_mode_enabled(), torch.is_grad_enabled()].save()
            logits = gpt2.output.logits.save()
    assert states == PLAIN
    assert inside == [True, True]
    assert outside == [False, True]
    assert doubled.is_inference()
    assert not logits.is_inference()
    assert logits.requires_grad
    assert not torch.is_inference_mode_enabled()


def test_a_function_mode_in_a_block_does_not_reach_the_model(gpt2: LanguageModel) -> None:
    class Count(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.names = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    mode = Count()
    with gpt2.trace(LONG):
        with mode:
            hidden = gpt2.transformer.h[0].output
            one = torch.exp(hidden)
            later = gpt2.transformer.h[1].output
            two = torch.exp(later)
        three = torch.exp(later)
        logits = gpt2.output.logits.save()
    assert mode.names.count("exp") == 2
    assert "linear" not in mode.names
    assert "layer_norm" not in mode.names
    assert_same(logits, models.logits_of(GPT2, LONG))


def test_no_grad_of_one_invoke_does_not_reach_another(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(FIRST):
            with torch.no_grad():
                first = [].save()
                for layer in gpt2.transformer.h:
                    hidden = layer.output
                    first.append(torch.is_grad_enabled())
        with tracer.invoke(SECOND):
            second = [].save()
            for layer in gpt2.transformer.h:
                hidden = layer.output
                second.append(torch.is_grad_enabled())
            logits = gpt2.output.logits.save()
    assert first == [False, False, False]
    assert second == [True, True, True]
    assert logits.requires_grad


def test_no_grad_around_a_loop_over_steps_ends_with_it(gpt2: LanguageModel) -> None:
    watch, states = _states(gpt2._module, LAYERS)
    with watch:
        with gpt2.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
            seen = [].save()
            with torch.enable_grad():
                for _ in tracer.iter[:]:
                    hidden = gpt2.transformer.h[1].output
                    seen.append(torch.is_grad_enabled())
            seen.append(torch.is_grad_enabled())
            result = tracer.result.save()
    assert states == dict.fromkeys(LAYERS, (False, False, False))
    assert seen[:3] == [True, True, True]
    assert torch.is_grad_enabled()


def test_a_block_that_raises_under_no_grad_leaves_the_state(gpt2: LanguageModel) -> None:
    with pytest.raises(ZeroDivisionError):
        with gpt2.trace(LONG):
            with torch.no_grad():
                hidden = gpt2.transformer.h[0].output
                1 / 0
    assert torch.is_grad_enabled()


def test_a_block_that_ends_while_it_waits_under_no_grad_leaves_the_state() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always = nn.Linear(3, 3)
            self.never = nn.Linear(3, 3)

        def forward(self, x):
            return self.always(x)

    model = NNsight(Sometimes())
    with pytest.raises(ValueError, match="never"):
        with model.trace(torch.ones(1, 3)):
            with torch.no_grad(), torch.autocast("cpu"):
                hidden = model.always.output
                absent = model.never.output
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_stop_under_no_grad_leaves_the_state(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG) as tracer:
        with torch.no_grad():
            hidden = gpt2.transformer.h[0].output.save()
            tracer.stop()
    assert torch.is_grad_enabled()
    assert_same(hidden, models.output_of(GPT2, LONG, "transformer.h.0"))


def test_a_block_may_set_the_seed_of_its_noise(gpt2: LanguageModel) -> None:
    def change(output):
        return output + torch.randn(output.shape, generator=torch.Generator().manual_seed(3))

    with hooked(bare(GPT2), {"transformer.h.1": change}):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with gpt2.trace(LONG):
        hidden = gpt2.transformer.h[1].output
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(3))
        gpt2.transformer.h[1].output = hidden + noise
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)


def test_the_random_state_is_that_of_a_plain_run() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)).train()
    model = NNsight(module)
    x = torch.ones(2, 4)
    torch.manual_seed(5)
    expected = module(x)
    torch.manual_seed(5)
    with model.trace(x):
        hidden = model[1].output.save()
        result = model.output.save()
    assert_same(result, expected)


def test_warning_filters_of_a_block_hold_for_the_block(gpt2: LanguageModel) -> None:
    filters = list(warnings.filters)
    with gpt2.trace(LONG):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hidden = gpt2.transformer.h[0].output.save()
            warnings.warn("seen by nobody", stacklevel=1)
    assert warnings.filters == filters


# kernels, and hooks on saved tensors


def _kernels():
    return (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
    )


def test_attention_kernels_of_a_block_are_not_the_models(gpt2: LanguageModel) -> None:
    seen = []
    before = _kernels()
    with hooked(gpt2._module, before={f"transformer.h.{n}": _keep_kernels(seen) for n in (1, 2)}):
        with gpt2.trace(LONG):
            with sdpa_kernel(SDPBackend.MATH):
                first = gpt2.transformer.h[0].output
                inside = [_kernels()].save()
                second = gpt2.transformer.h[1].output
                inside.append(_kernels())
            third = gpt2.transformer.h[2].output
            inside.append(_kernels())
    assert seen == [before, before]
    assert inside == [(False, False, True), (False, False, True), before]
    assert _kernels() == before


def _keep_kernels(seen):
    return lambda args, kwargs: seen.append(_kernels())


def test_hooks_on_saved_tensors_of_a_block_are_not_the_models(gpt2: LanguageModel) -> None:
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    with gpt2.trace(LONG):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            first = gpt2.transformer.h[0].output
            square = first * first
            second = gpt2.transformer.h[1].output
            other = second.exp()
        third = gpt2.transformer.h[2].output
        product = third * third
    # the two factors of the square, which are one tensor, and the result of exp
    assert len(packed) == 3


def test_hooks_on_saved_tensors_around_a_trace_hold_for_all_of_it(gpt2: LanguageModel) -> None:
    counts = []
    for run in (lambda: bare(GPT2)(**encoded(LONG)), lambda: _traced(gpt2)):
        packed = []
        with torch.autograd.graph.saved_tensors_hooks(packed.append, lambda tensor: tensor):
            run()
        counts.append(len(packed))
    assert counts[0] == counts[1] > 0


def _traced(gpt2):
    with gpt2.trace(LONG):
        with torch.autocast("cpu", enabled=False):
            hidden = gpt2.transformer.h[0].output


def test_a_state_that_a_block_sets_by_a_call_is_not_the_models(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG):
        first = gpt2.transformer.h[0].output
        torch.set_grad_enabled(False)
        second = gpt2.transformer.h[1].output.save()
    assert second.requires_grad
    assert torch.is_grad_enabled()
