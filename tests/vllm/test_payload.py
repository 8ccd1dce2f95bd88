"""Programs reach the engine as their text, from wherever they were written."""

from __future__ import annotations

import importlib
import json
import linecache
import pickle
import sys
import traceback

import pytest
import torch

import nnsight_dsl
from nnsight_dsl import intervene
from nnsight_dsl.errors import InterventionError
from nnsight_dsl.modeling.vllm.payload import Part, dump_parts, load_parts, opened
from nnsight_dsl.transforms.program import Program
from nnsight_dsl.transforms.relowering import lower_again
from nnsight_dsl.transforms.source.modules import rewrite_module

PROMPT = "The Eiffel Tower is in the city of"
BLOCK = "with model.trace(prompt):\n    h = changed(model.output).save()\n"


class Mistake(Exception):
    """Raised by a block."""


def block_of(text: str = BLOCK) -> Program:
    (program,) = rewrite_module(text, "user.py")[1]
    return program


def by_value(value: object) -> object:
    return value


by_value.__module__ = "__main__"


@intervene
def failing(model, layer: int):
    hidden = model.transformer.h[layer].output
    raise Mistake(tuple(hidden.shape))  # the line in the intervention


@intervene
def scaled(model, layer: int, factor: float = 2.0):
    model.transformer.h[layer].output *= factor
    return model.logits.output


# what is in a payload


def test_a_payload_brings_text_and_no_code():
    payload = dump_parts([Part(block_of(), {"model": 1, "prompt": "x", "changed": abs}, {})], {})
    (_, python), _, ((recipe, number),), _, values = opened(payload)
    assert (python, number) == (None, 0)
    assert json.loads(recipe)["text"] == BLOCK.rstrip("\n")
    assert b"CodeType" not in values
    assert block_of().code.co_code not in payload


def test_a_payload_without_functions_is_for_any_version_of_python():
    program = block_of()
    without = dump_parts([Part(program, {"changed": abs, "model": 1}, {})], {})
    assert opened(without)[0][1] is None
    functions = dump_parts([Part(program, {"changed": by_value, "model": 1}, {})], {})
    assert opened(functions)[0][1] == sys.version_info[:2]
    interventions = dump_parts([Part(program, {"changed": scaled, "model": 1}, {})], {})
    assert opened(interventions)[0][1] is None
    (number, _), *rest = opened(functions)
    with pytest.raises(InterventionError, match=r"is of Python 3\.1, and the engine runs Python"):
        opened(pickle.dumps(((number, (3, 1)), *rest)))
    with pytest.raises(InterventionError, match=r"the same version of nnsight_dsl"):
        opened(pickle.dumps(((number + 1, None), *rest)))


def test_a_text_that_the_engine_cannot_lower_is_named_with_its_line():
    recipe = json.dumps({**json.loads(block_of().recipe), "text": "with a:\n    newer syntax"})
    data = (None, {}, [(recipe, 0)], [(False, False)], pickle.dumps([({}, {})]))
    with pytest.raises(InterventionError, match=r"line 2 of user\.py cannot be lowered"):
        load_parts(data, None, None)  # type: ignore[arg-type]


def test_one_text_is_lowered_once_for_all_its_requests(gpt2):
    lower_again.cache_clear()
    with gpt2.trace(temperature=0.0, max_tokens=1) as tracer:
        kept = [].save()
        for number in range(64):
            with tracer.invoke(PROMPT):
                gpt2.transformer.h[number % 6].output[:, -1] *= 2
                kept.append(gpt2.logits.output)
    assert len(kept) == 64
    found = lower_again.cache_info()
    assert (found.misses, found.hits) == (1, 63)


# where programs come from


MODULE = """
import torch

def hidden(model, prompt):
    with model.session():
        with model.trace(prompt):
            first = model.transformer.h[1].output
        with model.trace() as tracer:
            for layer in (2, 3):
                with tracer.invoke(prompt):
                    kept = (model.transformer.h[layer].output - 0).save()
    return kept

def fail(model, prompt):
    with model.trace(prompt):
        kept = model.transformer.h[1].output
        raise ZeroDivisionError  # the line in the module
"""


def module_of(folder, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.syspath_prepend(str(folder))
    with nnsight_dsl.install_import_hook("imported_blocks"):
        sys.modules.pop("imported_blocks", None)
        importlib.invalidate_caches()
        return importlib.import_module("imported_blocks")


def lines_of(error: BaseException) -> list[str | None]:
    return [entry.line for entry in traceback.extract_tb(error.__traceback__)]


def test_blocks_of_an_imported_module_run_and_fail_at_their_lines(gpt2, tmp_path, monkeypatch):
    (tmp_path / "imported_blocks.py").write_text(MODULE)
    with gpt2.trace(PROMPT):
        expected = gpt2.transformer.h[3].output.save()
    for is_cached in (False, True):
        assert bool(list(tmp_path.glob("__pycache__/*nnsight*"))) is is_cached
        module = module_of(tmp_path, monkeypatch)
        assert torch.equal(module.hidden(gpt2, PROMPT), expected)
        with pytest.raises(ZeroDivisionError) as caught:
            module.fail(gpt2, PROMPT)
        assert any("# the line in the module" in line for line in lines_of(caught.value))


def test_a_text_under_exec_runs_and_fails_at_its_line(gpt2):
    text = (
        "\n\nfor layer in (2,):\n"
        "    with model.trace(prompt):\n"
        "        h = model.transformer.h[layer].output.save()\n"
        "with model.trace(prompt):\n"
        "    gone = model.transformer.h[1].output[99]  # the line in the text\n"
    )
    linecache.cache["<a cell>"] = (len(text), None, text.splitlines(True), "<a cell>")
    names = {"model": gpt2, "prompt": PROMPT}
    with pytest.raises(IndexError) as caught:
        exec(compile(text, "<a cell>", "exec", dont_inherit=True), names)
    assert "gone = model.transformer.h[1].output[99]  # the line in the text" in lines_of(
        caught.value
    )
    assert names["h"].shape[0] == 1


def test_an_intervention_that_a_block_calls_runs_and_fails_at_its_line(gpt2):
    with gpt2.trace(PROMPT, temperature=0.0):
        gpt2.transformer.h[2].output *= 3.0
        expected = gpt2.logits.output.save()
    for _ in range(2):
        lower_again.cache_clear()
        with gpt2.trace(PROMPT, temperature=0.0):
            logits = scaled(gpt2, 2, factor=3.0).save()
        assert torch.equal(logits, expected)
        assert lower_again.cache_info().misses == 2  # the block, and the intervention
    assert torch.equal(scaled.run(gpt2, PROMPT, layer=2, factor=3.0, temperature=0.0), expected)
    with pytest.raises(Mistake) as caught:
        with gpt2.trace(PROMPT):
            failing(gpt2, 1)
    entries = traceback.extract_tb(caught.value.__traceback__)
    assert entries[-1].filename == __file__
    assert "# the line in the intervention" in (entries[-1].line or "")


def test_an_intervention_keeps_its_defaults_and_what_it_closes_over(gpt2):
    start = torch.tensor(2.0)

    def made(amount):
        @intervene
        def shifted(model, layer: int = 2, times=start):
            model.transformer.h[layer].output += amount * times
            return model.logits.output

        return shifted

    shifted = made(0.5)
    with gpt2.trace(PROMPT, temperature=0.0):
        gpt2.transformer.h[2].output += 1.0
        expected = gpt2.logits.output.save()
    with gpt2.trace(PROMPT, temperature=0.0):
        logits = shifted(gpt2).save()
    assert torch.equal(logits, expected)


def test_an_intervention_without_text_is_named_before_the_request_is(gpt2):
    names: dict[str, object] = {}
    exec("def untold(model):\n    return model.logits.output", names)
    untold = intervene(names["untold"])  # type: ignore[arg-type]
    with pytest.raises(InterventionError, match=r"'untold'.*nowhere to be found"):
        with gpt2.trace(PROMPT):
            logits = untold(gpt2).save()


def test_a_session_hands_values_from_trace_to_trace(gpt2):
    with gpt2.trace("The Colosseum is in the city of", temperature=0.0):
        given = gpt2.transformer.h[3].output[:, -1].save()
    with gpt2.trace(PROMPT, temperature=0.0):
        gpt2.transformer.h[3].output[:, -1] = given
        expected = gpt2.logits.output.save()
    with gpt2.session():
        with gpt2.trace("The Colosseum is in the city of", temperature=0.0):
            hidden = gpt2.transformer.h[3].output[:, -1]
        with gpt2.trace(PROMPT, temperature=0.0):
            gpt2.transformer.h[3].output[:, -1] = hidden
            logits = gpt2.logits.output.save()
    assert torch.equal(logits, expected)
    assert "hidden" not in locals()


def test_an_edit_travels_with_each_request(gpt2):
    with gpt2.edit() as edited:
        gpt2.transformer.h[2].output[:] = 0
    with edited.trace(PROMPT):
        hidden = edited.transformer.h[2].output.save()
    assert not hidden.any()
