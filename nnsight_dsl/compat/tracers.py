"""Tracers as programs written for nnsight use them."""

from __future__ import annotations

from typing import Any

import torch

from nnsight_dsl.compat.caches import CacheView, KeptValues
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tracebacks import towards_user
from nnsight_dsl.tracing.cache import envoy_at, without_root
from nnsight_dsl.tracing.runnable import Runnable
from nnsight_dsl.tracing.tracer import Tracer


class AdaptedTracer(Tracer):
    """A trace of a program written for nnsight."""

    _cache_class = KeptValues

    def cache(  # type: ignore[override]
        self,
        modules: Any = None,
        device: Any = torch.device("cpu"),  # noqa: B008
        dtype: torch.dtype | None = None,
        detach: bool = True,
        include_output: bool = True,
        include_inputs: bool = False,
        non_blocking: bool = False,
    ) -> CacheView:
        """Keep the outputs of many modules, as `nnsight_dsl.tracing.tracer.Tracer.cache`.

        Args:
            modules: envoys or paths, which may begin with the name of the root.
            device: where the copies are kept; None leaves them where they are.
            dtype: what floating-point tensors are converted to.
            detach: keep them without their graph.
            include_output: keep outputs.
            include_inputs: keep `(args, kwargs)`.
            non_blocking: accepted; a copy is always complete before the model goes on.

        Returns:
            The view of the cache.
        """
        machine = current_machine()
        if machine is None:
            raise towards_user(messages.outside("tracer.cache()"))
        if isinstance(modules, str):
            modules = [modules]
        if isinstance(modules, (list, tuple, set, frozenset)):
            modules = [_with_root(self._model, one) for one in modules]
        kept = super().cache(
            modules,
            device=device,
            dtype=dtype,
            detach=detach,
            include_output=include_output,
            include_inputs=include_inputs,
        )
        view = CacheView(kept)  # type: ignore[arg-type]
        machine.saved.add(view)
        return view


def _with_root(root: Runnable, one: Any) -> Any:
    """Return the envoy at a path that begins with the name of the root, else what was given."""
    if not isinstance(one, str):
        return one
    found = envoy_at(root, without_root(one)[0])
    return one if found is None else found
