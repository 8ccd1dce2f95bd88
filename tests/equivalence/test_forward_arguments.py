"""Every architecture of transformers: its forward is given what a plain call gives it.

`make sweep-models` runs all architectures, `make test` some of them.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers

from nnsight_dsl import InputError, LanguageModel
from nnsight_dsl.modeling import checks, positions
from tests import shrunk
from tests.models import encoded, token_ids, tokenizer

# hundreds of forwards of others, with warnings of their own
pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = "the cat sat on the mat"
LENGTHS = range(60, 82)
"""Around the number of positions that all small models have, 64."""

FAILS = (RuntimeError, IndexError, ValueError)


def _kinds() -> Sequence[tuple[str, str]]:
    known = [kind for kind in shrunk.kinds() if kind[0] != "base" and kind not in shrunk.NOT_MADE]
    return known if "NNSIGHT_DSL_SWEEP" in os.environ else known[::9]


@pytest.fixture(params=_kinds(), ids="-".join)
def module(request: pytest.FixtureRequest) -> Any:
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        yield shrunk.small_model(*request.param)


def _decoded(module: Any) -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": token_ids("a dog")} if module.config.is_encoder_decoder else {}


def _given(module: Any, call: Callable[[], Any]) -> dict[str, Any]:
    """The arguments of the first call of the module."""
    seen: list[dict[str, Any]] = []
    handle = module.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append({**dict(enumerate(args)), **kwargs}),
        with_kwargs=True,
    )
    try:
        call()
    finally:
        handle.remove()
    return seen[0]


def test_the_forward_is_given_what_a_plain_call_gives_it(module: Any) -> None:
    model = LanguageModel(module, tokenizer=tokenizer())
    more = _decoded(module)
    encoding = encoded(TEXT)
    ids = encoding["input_ids"]

    def trace(*args: Any, **kwargs: Any) -> None:
        with model.trace(*args, **kwargs, **more):
            pass

    whole = _given(module, lambda: module(**encoding, **more))
    bare = _given(module, lambda: module(input_ids=ids, **more))
    for expected, call in (
        (whole, lambda: trace(TEXT)),
        (whole, lambda: trace([TEXT])),
        (whole, lambda: trace(encoding)),
        (whole, lambda: trace(**encoding)),
        (bare, lambda: trace(ids)),
        (bare, lambda: trace(ids.tolist())),
        (bare, lambda: trace(input_ids=ids)),
    ):
        given = _given(module, call)
        assert set(given) == set(expected)
        for name, value in expected.items():
            assert torch.equal(given[name], value)


def test_prompts_of_equal_length_go_in_without_padding(module: Any) -> None:
    model = LanguageModel(module, tokenizer=tokenizer())
    more = _decoded(module)
    encoding = encoded(TEXT, "a bird flew over ten cat")
    both = {key: torch.cat([one, one]) for key, one in more.items()}

    def invokes() -> None:
        with model.trace() as tracer:
            with tracer.invoke(TEXT, **more):
                pass
            with tracer.invoke("a bird flew over ten cat", **more):
                pass

    expected = _given(module, lambda: module(**encoding, **both))
    given = _given(module, invokes)
    assert set(given) == set(expected)
    for name, value in expected.items():
        assert torch.equal(given[name], value)


def test_a_prompt_is_refused_where_the_model_would_fail_and_only_there(module: Any) -> None:
    model = LanguageModel(module, tokenizer=tokenizer())
    more = _decoded(module)
    limit = positions.find_limit(module)
    lengths = LENGTHS if limit is None else (limit, limit + 1)
    for length in (lengths[0], lengths[1], lengths[-1]):
        ids = torch.arange(length)[None] % 20 + 3
        try:
            module(input_ids=ids, **more)
        except FAILS:
            runs = False
        else:
            runs = True
        try:
            with model.trace(ids, **more):
                pass
        except InputError as error:
            assert "positions; give a shorter prompt" in str(error)
            assert not runs
        except FAILS:
            assert not runs and limit is None
        else:
            assert runs


def test_an_id_is_refused_where_the_model_would_fail(module: Any) -> None:
    count = checks.count_embeddings(module)
    if count is None:
        return
    model = LanguageModel(module, tokenizer=tokenizer())
    more = _decoded(module)
    for wrong in (count, -1):
        ids = torch.tensor([[3, 4, wrong, 5]])
        with pytest.raises(FAILS):
            module(input_ids=ids, **more)
        with pytest.raises(InputError, match=f"the id {wrong} in row 0"):
            with model.trace(ids, **more):
                pass
