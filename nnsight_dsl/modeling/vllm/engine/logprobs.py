"""Log probabilities of tokens that programs have written in the place of sampled ones.

vLLM's sampler returns with each token its log probability and its rank among all. A program that
writes `model.samples` puts in another token, of which these have to be those, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from nnsight_dsl.runtime.errors import EngineError


class Scores:
    """What the sampler compares tokens by, of the requests whose token may be written.

    Args:
        sampler: vLLM's sampler.
        metadata: its `SamplingMetadata` of this step.
        logits: the logits of all requests, before sampling, which may edit them in place.
        numbers: rows of the requests whose token may be written.
    """

    def __init__(self, sampler: Any, metadata: Any, logits: Any, numbers: Iterable[int]) -> None:
        self._mode = sampler.logprobs_mode
        self._rows: dict[int, torch.Tensor] = {}
        if metadata.max_num_logprobs is None or logits is None:
            return
        for number in numbers:
            row = logits[number].to(torch.float32, copy=True)
            is_raw = self._mode == "raw_logits"
            self._rows[number] = row if is_raw else row.log_softmax(-1)

    def replace(self, tensors: Any, number: int, token: int) -> None:
        """Put the score and the rank of a written token in the place of the sampled one's.

        Args:
            tensors: the sampler's `LogprobsTensors`; None without any.
            number: the row of the request.
            token: the written token.

        Raises:
            EngineError: the engine's scores are those after its processors, which are not known
                for a token that it has not sampled.
        """
        row = self._rows.get(number)
        if tensors is None or row is None or tensors.logprob_token_ids.ndim < 2:
            return
        if self._mode not in ("raw_logprobs", "raw_logits"):
            raise EngineError(
                f"logprobs were asked for in an engine with logprobs_mode={self._mode!r}, where "
                "those of a written token are not known; leave them out, or make the engine with "
                "'raw_logprobs'"
            )
        tensors.logprob_token_ids[number, 0] = token
        tensors.logprobs[number, 0] = row[token]
        tensors.selected_token_ranks[number] = (row >= row[token]).sum()
