"""Compiled modules give the values of the uncompiled model, and a run compiles nothing again.

The oracle is the same model without a compilation, with hooks. Dynamo's counters tell how many
frames were compiled.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from nnsight_dsl import LanguageModel
from tests import models
from tests.models import assert_same, encoded, hooked, new_gpt2, recorded

# dynamo asks tensors for their gradients
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")

PROMPT = "the cat sat"
PATHS = ["transformer.h.1.mlp", "transformer.h.2", "lm_head"]


def _whole(module: Any) -> Any:
    module.compile(backend="eager")
    return module


def _wrapped(module: Any) -> Any:
    return torch.compile(module, backend="eager")


def _layers(module: Any) -> Any:
    for layer in module.transformer.h:
        layer.compile(backend="eager")
    return module


FORMS = [_whole, _wrapped, _layers]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _frames() -> int:
    return int(counters["frames"]["total"])


def _model(form: Callable[[Any], Any]) -> LanguageModel:
    module = form(new_gpt2())
    # compiled for each mode of gradients that the tests have
    module(**encoded(PROMPT))
    with torch.no_grad():
        module(**encoded(PROMPT))
    return LanguageModel(module, tokenizer=models.tokenizer())


@pytest.mark.parametrize("form", FORMS)
def test_reads_and_edits(form: Callable[[Any], Any], caplog: pytest.LogCaptureFixture) -> None:
    plain = new_gpt2()
    with recorded(plain, PATHS) as seen:
        expected = plain(**encoded(PROMPT)).logits
    with hooked(plain, {PATHS[0]: lambda output: output * 2}):
        doubled = plain(**encoded(PROMPT)).logits
    model = _model(form)
    before = _frames()
    assert before > 0

    with caplog.at_level(logging.WARNING, "torch._dynamo"):
        for _ in range(4):
            with model.trace(PROMPT):
                mlp = model.transformer.h[1].mlp.output.save()
                layer = model.transformer.h[2].output.save()
                logits = model.lm_head.output.save()
            with model.trace(PROMPT):
                model.transformer.h[1].mlp.output *= 2
                changed = model.output.logits.save()
            with model.trace(PROMPT) as tracer:
                cache = tracer.cache(modules=[model.transformer.h[2]])
                operation = model.transformer.h[1].mlp.source.self_c_fc_0.output.save()
            untouched = model.module(**encoded(PROMPT)).logits

    assert _frames() == before
    warned = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert not [one for one in warned if one.name.startswith("torch")]
    assert_same([mlp, layer, logits], [seen[path][0] for path in PATHS])
    assert_same(changed, doubled)
    assert_same(untouched, expected)
    assert len(cache) == 1 and operation.shape[-1] == 64


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: Callable[[Any], Any]) -> None:
    plain = new_gpt2()
    kept: list[Any] = []

    def keep(_: Any, args: Any, output: Any) -> None:
        output.retain_grad()
        kept.append(output)

    handle = plain.transformer.h[1].mlp.register_forward_hook(keep)
    plain(**encoded(PROMPT)).logits.sum().backward()
    handle.remove()
    model = _model(form)
    before = _frames()

    for _ in range(3):
        with model.trace(PROMPT):
            mlp = model.transformer.h[1].mlp.output
            with model.output.logits.sum().backward():
                gradient = mlp.grad.save()

    assert_same(gradient, kept[0].grad)
    assert _frames() == before


@pytest.mark.parametrize("form", FORMS)
def test_several_invokes_and_steps(form: Callable[[Any], Any]) -> None:
    plain = LanguageModel(new_gpt2(), tokenizer=models.tokenizer())
    model = _model(form)
    found = []
    for one in (plain, model):
        with one.trace() as tracer:
            with tracer.invoke("the cat"):
                one.transformer.h[1].mlp.output[:] = 0
                first = one.lm_head.output.save()
            with tracer.invoke("a red dog"):
                second = one.transformer.h[2].output.save()
        with one.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
            for _ in tracer.iter[1:]:
                one.transformer.h[1].mlp.output[:] = 0
            tokens = tracer.result.save()
        found.append([first, second, tokens])
    assert_same(found[1], found[0])


def test_the_compiled_code_runs_where_nothing_inside_is_asked_for() -> None:
    ran: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        def run(*args: Any) -> Any:
            ran.append(1)
            return graph(*args)

        return run

    module = new_gpt2()
    module.transformer.h[1].compile(backend=backend)
    model = LanguageModel(module, tokenizer=models.tokenizer())

    with model.trace(PROMPT):
        layer = model.transformer.h[1].output.save()
    assert ran == [1]
    with model.trace(PROMPT):
        inside = model.transformer.h[1].mlp.output.save()
    assert ran == [1]
    with model.trace(PROMPT):
        other = model.transformer.h[2].mlp.output.save()
    assert ran == [1, 1]
    assert layer.shape == inside.shape == other.shape


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_code_of_inductor() -> None:
    plain, module = new_gpt2(), new_gpt2()
    module.transformer.h[1].mlp.compile()
    model = LanguageModel(module, tokenizer=models.tokenizer())
    with torch.no_grad():
        with recorded(plain, PATHS) as seen:
            expected = plain(**encoded(PROMPT)).logits
        with model.trace(PROMPT):
            mlp = model.transformer.h[1].mlp.output.save()
            logits = model.output.logits.save()
        with model.trace(PROMPT):
            inside = model.transformer.h[1].mlp.c_fc.output.save()

    assert torch.allclose(mlp, seen[PATHS[0]][0], atol=1e-5)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert inside.shape[-1] == 64
