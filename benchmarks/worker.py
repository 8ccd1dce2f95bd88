"""A process that is driven over a pipe: "run these contestants in this case, n rounds in turns".

    python -m benchmarks.worker

It reads one request in a line of JSON, and answers with one. Turns of several libraries alternate
like this although each has an interpreter of its own.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from .contestants import CONTESTANTS, Case
from .parts import compare, machine


@cache
def _cases(contestant: str, model: str) -> dict[str, Case]:
    return CONTESTANTS[contestant](model)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "name":
        return {"machine": machine()}
    reasons: dict[str, str] = {}
    ready: dict[str, Callable[[], object]] = {}
    for name in request["contestants"]:
        try:
            case = _cases(name, request["model"]).get(request["case"], "not measured on this model")
            if isinstance(case, str):
                reasons[name] = case
                continue
            for _ in range(request["warm_up"]):
                case()
            ready[name] = case
        except Exception as error:
            traceback.print_exc()
            reasons[name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    # the first round comes after another process's turn, with cold caches
    times = [one[1:] for one in compare([*ready.values()], request["rounds"] + 1, warm_up=0)]
    return {"times": dict(zip(ready, times, strict=True)), "reasons": reasons}


def main() -> None:
    # what a library prints goes where it does not disturb the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
