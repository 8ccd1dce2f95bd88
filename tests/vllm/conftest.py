"""One engine for each module of tests, in this process, beside transformers on the same weights."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Two cores serve no second engine process; the cache is as small as the engine takes it.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

if find_spec("vllm") is None:
    # `make test-core` runs where vLLM is not installed
    collect_ignore_glob = ["test_*.py"]

FACTS = Path(__file__).resolve().parents[2] / "examples" / "models" / "city-facts"
ENGINE = {"dtype": "float32", "max_model_len": 64, "max_num_batched_tokens": 2048}
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs vLLM, whose own use of its libraries warns at many places."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, with the tokenizer of city-facts."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = AutoTokenizer.from_pretrained(FACTS)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def started(folder: Path, **options: Any) -> Any:
    """Start an engine."""
    from nnsight_dsl.modeling.vllm import VLLM

    return VLLM(str(folder), dispatch=True, **{**ENGINE, **options})


def ended(model: Any) -> None:
    """End an engine, so that the next module can start its own."""
    from vllm.distributed import cleanup_dist_env_and_memory

    model.engine.llm_engine.engine_core.shutdown()
    model.engine = model._requests = None
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.fixture(scope="module")
def gpt2() -> Iterator[Any]:
    model = started(FACTS)
    yield model
    ended(model)


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> Iterator[Any]:
    model = started(llama_folder)
    yield model
    ended(model)


@pytest.fixture(scope="session")
def hf_gpt2() -> Any:
    return hf_model(FACTS)


@pytest.fixture(scope="session")
def hf_llama(llama_folder: Path) -> Any:
    return hf_model(llama_folder)


def hf_model(folder: Path) -> Any:
    import torch

    from nnsight_dsl import LanguageModel

    model = LanguageModel(str(folder), dtype=torch.float32, dispatch=True)
    model.requires_grad_(False)
    return model
