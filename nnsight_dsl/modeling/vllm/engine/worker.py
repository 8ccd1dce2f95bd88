"""What is mixed into vLLM's worker, to be called by name from the client."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

from nnsight_dsl.modeling.vllm.engine.engine import Engine
from nnsight_dsl.modeling.vllm.engine.ranks import Follower, group_of
from nnsight_dsl.modeling.vllm.payload import Outcome, dump_outcome


class WorkerExtension:
    """Methods of a worker whose engine runs programs.

    Attributes of the worker keep the prefix, since the class is mixed into one of vLLM's.
    """

    model_runner: Any
    rank: int
    _nnsight_dsl_engine: Engine | Follower

    def nnsight_dsl_install(self, seconds: float) -> None:
        """Get ready for programs."""
        group = group_of(self.model_runner)
        if group is not None and group.rank_in_group > 0:
            self._nnsight_dsl_engine = Follower(self.model_runner, group)
        else:
            self._nnsight_dsl_engine = Engine(self.model_runner, seconds, group)
            # what lowers programs is imported now, and not while the first one holds up a step
            importlib.import_module("nnsight_dsl.transforms.source.pipeline")

    def nnsight_dsl_finish(self, results: dict[str, bytes | None]) -> dict[str, bytes] | None:
        """End the programs of some requests; return what they have left, from one worker only.

        Args:
            results: by the client's name for a request, its `RequestOutput` as bytes.
        """
        left: dict[str, bytes] = {}
        for key, result in results.items():
            found = None if result is None else pickle.loads(result)
            outcome = self._nnsight_dsl_engine.finish(key, found)
            if self.rank == 0:
                left[key] = dump_outcome(Outcome() if outcome is None else outcome)
        return left if self.rank == 0 else None

    def nnsight_dsl_ended(self) -> list[str]:
        """List the requests whose programs have come to an early end."""
        return self._nnsight_dsl_engine.ended()

    def nnsight_dsl_taps(self) -> int:
        """Count the modules that carry a tap."""
        return self._nnsight_dsl_engine.count_taps()

    def nnsight_dsl_set_limit(self, seconds: float) -> None:
        """Change how long a block may run on without asking for a value."""
        if isinstance(self._nnsight_dsl_engine, Engine):
            self._nnsight_dsl_engine.limit.seconds = seconds
