"""A tensor parallel model of transformers, in two processes, beside the plain model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from nnsight_dsl import LanguageModel
from nnsight_dsl.modeling.tensor_parallel import splits_of
from tests import models

PROGRAM = Path(__file__).with_name("parallel_program.py")
ROOT = PROGRAM.parent.parent.parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=len(models.WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    assert len(models.WORDS) % 2 == 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    models.tokenizer().save_pretrained(path)
    return str(path)


def test_two_processes_see_whole_values(checkpoint: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [*command, str(PROGRAM), checkpoint],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split().count("whole") == 2


def test_a_model_that_is_not_split_has_no_splits(checkpoint: str) -> None:
    model = LanguageModel(checkpoint, dispatch=True)
    assert splits_of(model.module) == {}
