"""Tracers as programs written for nnsight use them."""

from __future__ import annotations

from typing import Any

import torch

from nnsight_dsl.blocks.callers import line_of_user
from nnsight_dsl.compat.caches import CacheView, KeptValues
from nnsight_dsl.compat.deprecations import warn_of_deprecated
from nnsight_dsl.envoys.ports import StepKey
from nnsight_dsl.runtime.driving import messages
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.machines.steps import StepSpec
from nnsight_dsl.runtime.tracebacks import towards_user
from nnsight_dsl.studies.scan_tracers import ScanTracer
from nnsight_dsl.tracing.cache import envoy_at, without_root
from nnsight_dsl.tracing.runnable import Input, Runnable
from nnsight_dsl.tracing.tracer import Tracer

_CPU = torch.device("cpu")


class AdaptedTracer(Tracer):
    """A trace of a program written for nnsight."""

    _cache_class = KeptValues

    def stop(self) -> None:
        """End the run here, for all its blocks.

        Raises:
            NotRunningError: no block is running here.
        """
        run = self._block_run
        if run is not None and run.driver is not None and current_machine() is not None:
            run.driver.stops_all = True
        super().stop()

    def cache(  # type: ignore[override]
        self,
        modules: Any = None,
        device: Any = _CPU,
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


class Tracer08(AdaptedTracer):
    """A trace of a program written for nnsight 0.8."""

    @property
    def iter(self) -> StepKey:
        """Steps of a generation, as in `for step in tracer.iter[1:3]:`."""
        _warn_of_with("tracer.iter")
        return super().iter

    def all(self) -> StepSpec:
        """All steps, as `tracer.iter[:]`.

        Returns:
            The steps, to be looped over.
        """
        _warn_of_with("tracer.all()")
        return super().all()


class Scan08(Tracer08, ScanTracer):
    """A scan of a program written for nnsight 0.8: of its names, those that were saved leave."""

    def __init__(
        self, model: Runnable, function: str, given: Input, options: dict[str, Any]
    ) -> None:
        super().__init__(model, function, given, options)
        self._leaves_all = False


def _warn_of_with(what: str) -> None:
    # only its text shows which form a loop has
    if line_of_user().startswith("with "):
        warn_of_deprecated(
            f"'with {what}' is deprecated in nnsight 0.8; write 'for step in {what}'"
        )


def _with_root(root: Runnable, one: Any) -> Any:
    """Return the envoy at a path that begins with the name of the root, else what was given."""
    if not isinstance(one, str):
        return one
    found = envoy_at(root, without_root(one)[0])
    return one if found is None else found
