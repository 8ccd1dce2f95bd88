"""Small models with random weights, and what a hand-written hook does to them.

Every model is built from its config, so that nothing is loaded, and from a fixed seed, so that two
of the same kind are equal. The weights are larger than a trained model starts with: an edit has to
make a difference that a test can see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from nnsight_dsl import LanguageModel

# Threads wait for each other longer than these models compute.
torch.set_num_threads(1)

WORDS = (
    "[PAD] [EOS] [UNK] the a cat dog bird sat ran flew on under over mat house tree red blue green "
    "one two three four five six seven eight nine ten"
).split()
PAD = 0
EOS = 1

SHORT = "the cat"
LONG = "the red dog ran under a blue tree"
MIDDLE = "a bird flew over"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        eos_token="[EOS]",
        unk_token="[UNK]",
        # GPT-2 would add token types to the embeddings
        model_input_names=["input_ids", "attention_mask"],
    )


def token_ids(*prompts: str) -> torch.Tensor:
    return torch.tensor([[WORDS.index(word) for word in prompt.split()] for prompt in prompts])


def new_gpt2(**options: Any) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=64,
        n_embd=16,
        n_layer=3,
        n_head=2,
        initializer_range=0.4,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **options,
    )
    return _built(GPT2LMHeadModel, config)


def new_llama(**options: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.4,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **options,
    )
    return _built(LlamaForCausalLM, config)


def new_bert(**options: Any) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=PAD,
        **options,
    )
    return _built(BertForMaskedLM, config)


def new_t5(**options: Any) -> T5ForConditionalGeneration:
    config = T5Config(
        vocab_size=len(WORDS),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        initializer_factor=1.0,
        decoder_start_token_id=PAD,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **options,
    )
    return _built(T5ForConditionalGeneration, config)


def _built(kind: Callable[[Any], nn.Module], config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind(config).eval()


@dataclass(frozen=True)
class Kind:
    """One architecture, with the paths that a test needs.

    Attributes:
        name: for the test's name.
        new: makes the module.
        layers: path of the list of layers.
        attention: path of the attention below a layer; its output is a tuple.
        mlp: path of the feed-forward part below a layer.
        embedding: path of the token embedding.
        head: path of what computes the logits.
        pads_left: on which side its prompts are padded.
    """

    name: str
    new: Callable[[], Any]
    layers: str
    attention: str
    mlp: str
    embedding: str
    head: str
    pads_left: bool = True

    def layer(self, number: int) -> str:
        return f"{self.layers}.{number}"

    def own(self, value: torch.Tensor, prompt: str) -> torch.Tensor:
        """Take the padding off a value of shape [rows, tokens, ...]."""
        count = len(prompt.split())
        return value[:, -count:] if self.pads_left else value[:, :count]


GPT2 = Kind("gpt2", new_gpt2, "transformer.h", "attn", "mlp", "transformer.wte", "lm_head")
LLAMA = Kind(
    "llama", new_llama, "model.layers", "self_attn", "mlp", "model.embed_tokens", "lm_head"
)
BERT = Kind(
    "bert",
    new_bert,
    "bert.encoder.layer",
    "attention",
    "output",
    "bert.embeddings.word_embeddings",
    "cls",
    pads_left=False,
)
KINDS = (GPT2, LLAMA, BERT)


@cache
def wrapped(kind: Kind) -> LanguageModel:
    """The shared model of a kind; for tests that leave the module as it is."""
    return LanguageModel(kind.new(), tokenizer=tokenizer())


@cache
def bare(kind: Kind) -> Any:
    """A module equal to the one behind `wrapped(kind)`, for hand-written hooks."""
    return kind.new()


def encoded(*prompts: str) -> dict[str, torch.Tensor]:
    """The arguments of a plain call, for prompts of the same length."""
    return dict(tokenizer()(list(prompts), return_tensors="pt"))


def at(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path)


@contextmanager
def hooked(
    module: nn.Module,
    after: Mapping[str, Callable[[Any], Any]] | None = None,
    before: Mapping[str, Callable[[Any, Any], Any]] | None = None,
) -> Iterator[nn.Module]:
    """Put hand-written hooks on a module's submodules.

    Args:
        module: the root.
        after: by path, a function of the output that returns a new one or None.
        before: by path, a function of args and kwargs that returns new ones or None.
    """
    handles = []
    for path, change in (after or {}).items():
        handles.append(
            at(module, path).register_forward_hook(
                lambda _module, _args, output, change=change: change(output)
            )
        )
    for path, change in (before or {}).items():
        handles.append(
            at(module, path).register_forward_pre_hook(
                lambda _module, args, kwargs, change=change: change(args, kwargs),
                with_kwargs=True,
            )
        )
    try:
        yield module
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(
    module: nn.Module, paths: Iterable[str] | None = None
) -> Iterator[dict[str, list[Any]]]:
    """Record by path what each call of each submodule returned, in order of their ends."""
    seen: dict[str, list[Any]] = {}
    if paths is None:
        paths = [path for path, _ in module.named_modules()]

    def keep(path: str) -> Callable[[Any], None]:
        return lambda output: seen.setdefault(path, []).append(output)

    with hooked(module, {path: keep(path) for path in paths}):
        yield seen


def output_of(kind: Kind, prompt: str, path: str) -> Any:
    """What a submodule returns for a prompt alone."""
    with recorded(bare(kind), [path]) as seen:
        bare(kind)(**encoded(prompt))
    return seen[path][0]


def logits_of(kind: Kind, prompt: str) -> torch.Tensor:
    """What the plain model says about a prompt alone."""
    logits: torch.Tensor = bare(kind)(**encoded(prompt)).logits
    return logits


def assert_near(actual: Any, expected: Any) -> None:
    """Compare values of a batch with those of a prompt alone."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def assert_same(actual: Any, expected: Any) -> None:
    """Compare values that the same operations made, bit by bit."""
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, Mapping):
        assert set(actual) == set(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (int, float, str, bool, type(None))):
        assert actual == expected
