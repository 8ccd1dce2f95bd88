"""Steer some of many prompts that a vLLM engine serves at once.

    make test-vllm        # installs vLLM beside the rest
    python examples/vllm_steering.py

The model is a GPT-2 of about a million parameters that knows in which city a landmark is. What its
layer 3 holds at the last token decides the answer. Here that value is read from prompts about
landmarks in Paris, and written over that of every third of 24 other prompts. Their answers become
Paris; the tokens of the prompts beside them in the same batch stay what they were. The script fails
where that does not hold.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

MODEL = Path(__file__).parent / "models" / "city-facts"
FACTS = json.loads((MODEL / "facts.json").read_text(encoding="utf-8"))
LAYER = 3
SAMPLING = {"temperature": 0.0, "max_tokens": 5}


def check(claim: str, holds: bool) -> None:
    """Fail where a claim of this script does not hold."""
    if not holds:
        raise SystemExit(f"not as claimed: {claim}")


def main() -> None:
    from nnsight_dsl.modeling.vllm import VLLM

    model = VLLM(str(MODEL), dtype="float32", max_model_len=64, max_num_batched_tokens=2048)
    of_paris = [fact["subject"] for fact in FACTS if fact["city"] == "Paris"]
    others = [fact["subject"] for fact in FACTS if fact["city"] != "Paris"][:24]
    steered = set(range(0, 24, 3))

    with model.trace(temperature=0.0) as tracer:
        states = [].save()
        for subject in of_paris:
            with tracer.invoke(f"{subject} is in the city of"):
                states.append(model.transformer.h[LAYER].output[:, -1])
    paris = sum(states) / len(states)

    before: dict[int, list[int]] = {}
    with model.trace(**SAMPLING) as tracer:
        for number, subject in enumerate(others):
            with tracer.invoke(f"{subject} is in the city of"):
                before[number] = tracer.result.outputs[0].token_ids

    after: dict[int, list[int]] = {}
    with model.trace(**SAMPLING) as tracer:
        for number, subject in enumerate(others):
            with tracer.invoke(f"{subject} is in the city of"):
                if number in steered:
                    model.transformer.h[LAYER].output[:, -1] = paris
                after[number] = tracer.result.outputs[0].token_ids

    words = model.tokenizer.decode
    for number in sorted(steered):
        print(f"{others[number]}: {words(before[number])!r} -> {words(after[number])!r}")
    is_flipped = [words(after[number][:1]) == " Paris" for number in steered]
    is_same = [before[number] == after[number] for number in range(24) if number not in steered]
    print(f"answers that were steered: {sum(is_flipped)} of {len(is_flipped)} are Paris")
    check("every steered answer is Paris", all(is_flipped))
    check("no other answer has changed", all(is_same) and len(is_same) == 16)
    print("answers that were not steered: unchanged")


if __name__ == "__main__":
    main()
