"""Whatever stands in the parameters of a request, or is written into it: the engine goes on.

Anything malformed is refused where the request is made. The engine checks once more what reaches it
another way: here, by the engine's own `add_request`, without the check that is put before it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nnsight_dsl.errors import EngineError, WriteError
from nnsight_dsl.modeling.vllm.sent_programs import KEY, WHOLE

from .test_batches import PROMPTS

N_REQUESTS, STRANGE = 16, 5


class Raises:
    """Raises an exception when it is unpickled."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raised, (self.error,)


def raised(error: type[BaseException]) -> None:
    raise error("in a payload")


def sent(**changes: Any) -> dict[str, Any]:
    whole = {"key": "strange", "payload": b"no pickle", "reach": (True, True), WHOLE: True}
    return {**whole, **changes}


MALFORMED = [
    "x", 3, None, [], {}, b"bytes", {"payload": b""}, sent(key=None), sent(key=["list"]),
    sent(key={}), sent(payload="text"), sent(payload=None), sent(reach=None), sent(reach=(True,)),
    sent(reach=(True, True, True)), sent(reach=("a", "b")), sent(reach=3), sent(whole="yes"),
]  # fmt: skip


def add_requests(gpt2: Any, add: Callable[..., Any], strange: Any) -> None:
    from vllm import SamplingParams

    for number in range(N_REQUESTS):
        extra = {KEY: strange} if number == STRANGE else None
        params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, extra_args=extra)
        add(str(number), {"prompt": PROMPTS[number]}, params)


def served(gpt2: Any) -> dict[int, list[int]]:
    """Run an engine until no request is left; return the tokens of each."""
    engine, found = gpt2.engine.llm_engine, {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[int(output.request_id)] = list(output.outputs[0].token_ids)
    return found


@pytest.fixture(scope="module")
def expected(gpt2: Any) -> dict[int, list[int]]:
    from vllm import SamplingParams

    for number in range(N_REQUESTS):
        params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
        gpt2.engine.llm_engine.add_request(str(number), {"prompt": PROMPTS[number]}, params)
    return served(gpt2)


def started(gpt2: Any) -> None:
    with gpt2.trace(PROMPTS[0]):
        gpt2.logits.output.save()


@pytest.mark.parametrize("strange", MALFORMED, ids=repr)
def test_a_malformed_value_is_refused_where_the_request_is_made(gpt2: Any, strange: Any) -> None:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=2, extra_args={KEY: strange})
    with pytest.raises(EngineError, match="not what a trace sends"):
        gpt2.engine.generate([PROMPTS[0]], params, use_tqdm=False)
    started(gpt2)


def test_a_program_of_another_process_is_refused_where_the_request_is_made(gpt2: Any) -> None:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=2, extra_args={KEY: sent()})
    with pytest.raises(EngineError, match="no trace of this process has made"):
        gpt2.engine.generate([PROMPTS[0]], params, use_tqdm=False)


def beside(gpt2: Any, strange: Any, expected: dict[int, list[int]]) -> None:
    """Serve a strange request among others, without the check in front of the engine."""
    engine = gpt2.engine.llm_engine
    add_requests(gpt2, engine.add_request.__wrapped__, strange)
    assert served(gpt2) == expected
    for worker in gpt2.engine.collective_rpc("nnsight_dsl_finish", args=({"strange": None},)):
        pickle.loads(worker["strange"])
    assert gpt2.engine.collective_rpc("nnsight_dsl_taps") == [0]


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"no pickle", pickle.dumps(None), pickle.dumps(()),
        pickle.dumps(((3, None), {}, [], [], b"")),
        *(pickle.dumps(Raises(one)) for one in (SystemExit, KeyboardInterrupt, RecursionError)),
    ],
)  # fmt: skip
def test_a_payload_that_does_not_load_ends_its_own_programs(
    gpt2: Any, expected: dict[int, list[int]], payload: bytes
) -> None:
    beside(gpt2, sent(payload=payload), expected)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.text(max_size=5) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
near = st.fixed_dictionaries(
    {},
    optional={
        "key": st.just("strange") | plain_values,
        "payload": st.binary(max_size=30) | plain_values,
        "reach": st.tuples(st.booleans(), st.booleans()) | plain_values,
        WHOLE: st.booleans() | plain_values,
    },
)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(strange=plain_values | near)
def test_other_requests_are_served_beside_any_value(
    gpt2: Any, expected: dict[int, list[int]], strange: Any
) -> None:
    beside(gpt2, strange, expected)


@pytest.mark.parametrize("token", [-1, 10**6])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_token_that_the_model_has_not_is_refused(gpt2: Any, token: int, in_place: bool) -> None:
    with pytest.raises(WriteError, match=r"the model has tokens 0 to"):
        with gpt2.generate(max_tokens=2, temperature=0.0) as tracer:
            with tracer.invoke(PROMPTS[0]):
                if in_place:
                    gpt2.samples.output[:] = token
                else:
                    gpt2.samples.output = torch.full_like(gpt2.samples.output, token)
            with tracer.invoke(PROMPTS[1]):
                for _ in tracer.iter[:]:
                    gpt2.logits.output
    started(gpt2)


def test_a_module_with_attention_cannot_be_called_in_a_block(gpt2: Any) -> None:
    with pytest.raises(EngineError, match="there is an attention in it"):
        with gpt2.trace(PROMPTS[0]):
            hidden = gpt2.transformer.h[2].output
            gpt2.transformer.h[3](hidden)
    with gpt2.trace(PROMPTS[0]):
        layer = gpt2.transformer.h[3]
        hidden = layer.ln_2.input
        again = layer.mlp(layer.ln_2(hidden)).save()
        own = layer.mlp.output.save()
    torch.testing.assert_close(again, own)


def test_several_completions_without_a_program_all_come_back(gpt2: Any) -> None:
    output = gpt2.generate(PROMPTS[0], n=3, max_tokens=2, temperature=1.0, seed=1, trace=False)
    assert len(output.outputs) == 3


def test_a_written_token_has_its_own_logprob_and_rank(gpt2: Any) -> None:
    chosen = 7
    with gpt2.trace(temperature=0.0, logprobs=2, max_tokens=1) as tracer:
        with tracer.invoke(PROMPTS[0]):
            logits = gpt2.logits.output.clone().save()
            gpt2.samples.output[:] = chosen
            result = tracer.result.save()
        with tracer.invoke(PROMPTS[1]):
            plain = gpt2.logits.output.clone().save()
            other = tracer.result.save()
    scores = logits[0].log_softmax(-1)
    (found,) = result.outputs[0].logprobs
    assert list(result.outputs[0].token_ids) == [chosen]
    assert found[chosen].logprob == pytest.approx(scores[chosen].item(), abs=1e-4)
    assert found[chosen].rank == int((scores >= scores[chosen]).sum())
    (best,) = other.outputs[0].logprobs
    (token,) = other.outputs[0].token_ids
    assert best[token].logprob == pytest.approx(plain[0].log_softmax(-1).max().item(), abs=1e-4)
    assert best[token].rank == 1


def test_weights_are_read_and_stay_as_they_are(gpt2: Any) -> None:
    layer = gpt2.transformer.h[2]
    with gpt2.trace(PROMPTS[0], temperature=0.0):
        # vLLM's CPU build packs those of linear layers
        weight, bias = layer.ln_2.weight.save(), layer.ln_2.bias.save()
        hidden = layer.ln_2.input.save()
        normed = layer.ln_2.output.save()
    expected = torch.nn.functional.layer_norm(hidden, weight.shape, weight, bias)
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-4)


def in_place(layer: Any) -> None:
    layer.ln_2.weight[:] = 0


def behind_autograd(layer: Any) -> None:
    layer.ln_2.weight.data[:] = 0


def exchanged(layer: Any) -> None:
    layer.ln_2.weight = torch.nn.Parameter(torch.zeros(3))


def deleted(layer: Any) -> None:
    del layer.ln_2.bias


def converted(layer: Any) -> None:
    layer.half()


def listed(layer: Any) -> None:
    for weight in layer.parameters():
        weight.zero_()


@pytest.mark.parametrize("edit", [in_place, behind_autograd, exchanged, deleted, converted, listed])
def test_weights_cannot_be_edited_in_a_block(gpt2: Any, edit: Callable[[Any], None]) -> None:
    with gpt2.trace(PROMPTS[0], temperature=0.0):
        before = gpt2.logits.output.save()
    with pytest.raises((EngineError, WriteError), match="belong to all its requests"):
        with gpt2.trace(PROMPTS[0], temperature=0.0):
            edit(gpt2.transformer.h[2])
            gpt2.logits.output.save()
    with gpt2.trace(PROMPTS[0], temperature=0.0):
        after = gpt2.logits.output.save()
    assert torch.equal(before, after)
