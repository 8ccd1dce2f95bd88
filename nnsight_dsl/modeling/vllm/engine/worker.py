"""The worker extension: methods of vLLM's worker that the client calls by name.

vLLM mixes the class that `worker_extension_cls` names into its worker, in the worker's process. The
client calls a method on all workers:

    engine.collective_rpc("nnsight_dsl_install", args=(60.0,))     # returns a list, one per worker

Rank 0 has an `Engine`, which runs programs; any other rank has a `Follower`.
"""

from __future__ import annotations

import importlib
import pickle
from typing import Any

from nnsight_dsl.modeling.vllm.engine.engine import Engine
from nnsight_dsl.modeling.vllm.engine.follower import Follower
from nnsight_dsl.modeling.vllm.engine.ranks import group_of
from nnsight_dsl.modeling.vllm.payload import Outcome, dump_outcome


class WorkerExtension:
    """Methods for a worker of vLLM.

    All names have a prefix, since the class is mixed into a class of vLLM's.
    """

    model_runner: Any
    rank: int
    _nnsight_dsl_engine: Engine | Follower

    def nnsight_dsl_install(self, seconds: float) -> None:
        """Prepare the worker for programs; called once, before the first request.

        Args:
            seconds: how long a block may run without asking for a value.
        """
        group = group_of(self.model_runner)
        if group is not None and group.rank_in_group > 0:
            self._nnsight_dsl_engine = Follower(self.model_runner, group)
        else:
            self._nnsight_dsl_engine = Engine(self.model_runner, seconds, group)
            # the import takes 0.3 s, by which it would delay the step of the first program
            importlib.import_module("nnsight_dsl.transforms.source.pipeline")

    def nnsight_dsl_finish(self, results: dict[str, bytes | None]) -> dict[str, bytes] | None:
        """End the programs of requests.

        Args:
            results: by the client's key of a request, its pickled `RequestOutput`; None if it was
                aborted.

        Returns:
            The pickled outcomes by key; None on all ranks but the first.
        """
        left: dict[str, bytes] = {}
        for key, result in results.items():
            found = None if result is None else pickle.loads(result)
            outcome = self._nnsight_dsl_engine.finish(key, found)
            if self.rank == 0:
                left[key] = dump_outcome(Outcome() if outcome is None else outcome)
        return left if self.rank == 0 else None

    def nnsight_dsl_ended(self) -> list[str]:
        """List the keys of requests whose programs have ended early, by an error or by `stop`."""
        return self._nnsight_dsl_engine.ended()

    def nnsight_dsl_taps(self) -> int:
        """Count the modules that carry a tap."""
        return self._nnsight_dsl_engine.count_taps()

    def nnsight_dsl_set_limit(self, seconds: float) -> None:
        """Change how long a block may run without asking for a value."""
        if isinstance(self._nnsight_dsl_engine, Engine):
            self._nnsight_dsl_engine.limit.seconds = seconds
