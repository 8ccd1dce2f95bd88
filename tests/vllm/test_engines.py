"""Which engines serve programs, which are refused, and what a program does before there is one."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from nnsight_dsl import intervene
from nnsight_dsl.errors import EngineError, OutOfOrderError
from nnsight_dsl.modeling.vllm import VLLM

from .conftest import ENGINE, FACTS, ended, started

PROMPT = "The Eiffel Tower is in the city of"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    "options",
    [
        {"pipeline_parallel_size": 2},
        {"data_parallel_size": 2},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    ],
)
def test_an_engine_that_could_not_serve_programs_is_refused(options):
    with pytest.raises(EngineError, match=next(iter(options))):
        VLLM(str(FACTS), **options)


def test_a_model_without_weights_shows_its_tree_and_checks_programs():
    model = VLLM(str(FACTS), **ENGINE)
    assert model.device == torch.device("meta")
    assert model.transformer.h[2].mlp._path == "transformer.h.2.mlp"
    assert model.tokenizer.encode(" Paris") == [564]
    with pytest.raises(OutOfOrderError):
        with model.trace(PROMPT):
            late = model.transformer.h[2].output
            early = model.transformer.h[1].output.save()
            inside = model.transformer.h[2].mlp.output.save()
    assert model.engine is None


def test_aliases_lead_to_the_same_places_in_the_engine():
    model = started(FACTS, rename={"transformer.h": "layers"})
    try:
        with model.trace(PROMPT):
            hidden = model.layers[1].output.save()
        with model.trace(PROMPT):
            same = model.transformer.h[1].output.save()
        assert torch.equal(hidden, same)
    finally:
        ended(model)


def test_a_compiled_engine_refuses_what_it_cannot_offer_and_serves_the_rest():
    model = started(FACTS, enforce_eager=False, compilation_config={"mode": 3, "backend": "eager"})
    try:
        with pytest.raises(EngineError, match="enforce_eager=True") as caught:
            with model.trace(PROMPT):
                logits = model.logits.output.save()
                hidden = model.transformer.h[1].output.save()  # the line
        lines = [entry.line for entry in traceback.extract_tb(caught.value.__traceback__)]
        assert any("# the line" in line for line in lines)

        def hidden_of(path):
            return model.get(path).output  # not lowered with the block

        with pytest.raises(EngineError, match="enforce_eager=True"):
            with model.trace(PROMPT):
                hidden = hidden_of("transformer.h.1").save()
        with pytest.raises(EngineError, match="enforce_eager=True"):
            with model.trace(PROMPT):
                summed = model.transformer.h[1].source.add_0.output.save()
        for modules in (None, [model.transformer.h[1]]):
            with pytest.raises(EngineError, match="enforce_eager=True"):
                with model.trace(PROMPT) as tracer:
                    cache = tracer.cache(modules=modules)
        with model.edit() as edited:
            model.transformer.h[1].output[:] = 0
        with pytest.raises(EngineError, match="enforce_eager=True"):
            edited.trace(PROMPT, trace=False)
        with pytest.raises(EngineError, match="enforce_eager=True"):
            silenced.run(model, PROMPT)
        with pytest.raises(EngineError, match="enforce_eager=True"):
            with model.trace(PROMPT):
                model.transformer.h[1].skip(0)
        with model.trace(PROMPT, temperature=0.0):
            logits = model.logits.output.save()
        assert model.tokenizer.decode(logits.argmax(-1)) == " Paris"
    finally:
        ended(model)


@intervene
def silenced(model):
    model.transformer.h[1].output[:] = 0
    return model.logits.output


def run_script(path, *, own_process):
    import os

    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if own_process else "0"}
    return subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=600,
    )


def test_the_example_of_steering_runs_with_the_engine_in_a_process_of_its_own():
    done = run_script(EXAMPLES / "vllm_steering.py", own_process=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "answers that were not steered: unchanged" in done.stdout
