"""New requests with programs, found alike on every rank: all must agree on which these are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from nnsight_dsl.modeling.vllm.sent_programs import SentProgram, sent_in
from nnsight_dsl.runtime.errors import EngineError

_log = logging.getLogger(__name__)


def new_programs(scheduled: Any, running: Mapping[str, str]) -> Iterator[tuple[str, SentProgram]]:
    """Iterate over the programs of requests that are new in a step, by vLLM's id of the request.

    What is malformed, or has the key of a request that is running, is noted in the log, and the
    request runs without a program: a client of this package refuses it before it is sent.

    Args:
        scheduled: the scheduler's output for the step.
        running: the clients' keys of the requests that run with programs, by vLLM's ids. The caller
            adds each that it is given.
    """
    for new in scheduled.scheduled_new_reqs:
        if new.req_id in running:
            continue
        try:
            sent = sent_in(getattr(new.sampling_params, "extra_args", None))
            if sent is not None and sent.key in running.values():
                raise EngineError(f"the key {sent.key!r} is that of a request that is running")
        except EngineError as error:
            _log.warning("request %s runs without a program: %s", new.req_id, error)
            continue
        if sent is not None:
            yield new.req_id, sent
