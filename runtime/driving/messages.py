"""The messages of a run's errors and warnings: the observed fact, and what to do about it."""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from nnsight_dsl.runtime.errors import (
    BarrierError,
    GenerationEndedError,
    InvokeError,
    NoInputError,
    NotCalledError,
    NotRunningError,
    OutOfOrderError,
    SharedNameError,
    WriteShapeError,
)
from nnsight_dsl.runtime.locations import Place, ancestors, name_of
from nnsight_dsl.runtime.machines.barriers import Barrier
from nnsight_dsl.runtime.machines.machine import Machine
from nnsight_dsl.runtime.machines.steps import Steps
from nnsight_dsl.runtime.tapping.taps import Tap
from nnsight_dsl.runtime.tapping.torch_fast_path import is_fast_layer
from nnsight_dsl.runtime.tracebacks import clean, traceback_at
from nnsight_dsl.runtime.values.offers import Suspect
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.requests import Request, target_of


class Run(Protocol):
    """The members of a run that the messages use.

    Attributes:
        root: place of the root module.
        machines: the machines in the order of their definition.
        is_stepped: True in a generation.
        step: in a generation, the step that runs, -1 before the first.
        has_ended: whether the model has returned.
    """

    root: Place
    machines: list[Machine]
    is_stepped: bool
    step: int
    has_ended: bool

    def tap_for(self, place: Place) -> Tap:
        """Return the tap at a place; put one there if there is none."""


def location_of(request: Request) -> str:
    """Spell the location a request is for."""
    verb = request[0]
    if verb == requests.WRITE:
        return name_of(request[2], request[3])
    if verb == requests.SKIP:
        return name_of(request[1], "skip")
    return name_of(request[1], request[2])


def _action(request: Request) -> str:
    return {requests.WRITE: "write", requests.SKIP: "skip"}.get(request[0], "read")


def passed(run: Run, machine: Machine, request: Request, tap: Tap) -> Exception:
    """The value has already passed."""
    location = location_of(request)
    if run.is_stepped and run.has_ended:
        return GenerationEndedError(
            f"{location} was asked for after the generation had ended (it took {run.step + 1} "
            "steps); read it inside the loop over steps, or in another invoke"
        )
    when = ""
    if run.is_stepped:
        when = f" in step {machine.step}"
        if run.step > machine.step:
            when += f" (the generation is at step {run.step})"
    elif tap.begun > 1:
        when = f" for visit {machine.step} ({tap.begun} visits have begun)"
    path = target_of(request)._path
    others = _other_paths(run, tap, path)
    if others:
        return OutOfOrderError(
            f"{location} has already passed{when}: {' and '.join((path, *others))} are one module, "
            "and an access means its first visit; go on to its next visit by .next(), or loop over "
            "the visits by 'for visit in tracer.iter[:]:'"
        )
    running = "" if tap.index is None else f"; {tap.place._path or 'the model'} is running now"
    return OutOfOrderError(
        f"{location} has already passed{when}{running}; {_action(request)} values in the order in "
        "which the model computes them, so move this access up, or put it in a separate invoke"
    )


def _other_paths(run: Run, tap: Tap, path: str) -> list[str]:
    """Return the other paths of a module."""
    module = tap.place._module
    if module is None:
        return []
    found = run.root._module.named_modules(remove_duplicate=False)
    return [other for other, one in found if one is module and other != path]


def element_passed(request: Request) -> Exception:
    """The container was offered before the index or the value had been computed."""
    return OutOfOrderError(
        f"an element of {name_of(request[3], request[4])} was set after the value had passed; "
        "compute the index before this line, and move this line up"
    )


def parent_passed(machine: Machine, request: Request, parent: Place) -> Exception:
    """The module that contains the location has returned."""
    return OutOfOrderError(
        f"{location_of(request)} can no longer come, since {parent._path or 'the model'} has "
        "already returned; move this access before the one that waited for it, or put it in a "
        "separate invoke"
    )


def not_in_step(run: Run, machine: Machine, request: Request) -> Exception:
    """The module was not called in the step the request was pinned to."""
    return NotCalledError(
        f"{location_of(request)} was not computed in step {machine.step}; the module was not "
        "called in this step: print(model) shows the paths, tracer.iter[...] the step"
    )


def never_came(run: Run, machine: Machine, request: Request) -> Exception:
    """The run is over and the request was never served."""
    verb = request[0]
    if verb == requests.NAME:
        return never_bound(request[1])
    if verb == requests.MEET:
        barrier = request[1]
        return BarrierError(
            f"{len(barrier.arrived)} of {barrier.participants} invokes came to this barrier before "
            "the run was over; make the barrier for as many invokes as wait at it, each as often"
        )
    location = location_of(request)
    place = request[2] if verb == requests.WRITE else request[1]
    for above in ancestors(place):
        tap = run.tap_for(above)
        line = tap.skipped_by if machine.rows is None else tap.skipped_for.get(machine.rows)
        line = tap.skipped_by if line is None else line
        if line is not None and above is not place:
            return NotCalledError(
                f"{location} was never computed, since {above._path} was skipped (line "
                f"{line}); ask for it in a run that does not skip {above._path}"
            )
    if run.is_stepped and machine.step > run.step >= 0:
        return GenerationEndedError(
            f"{location} was asked for in step {machine.step}, and the generation ended after "
            f"{run.step + 1} steps; count steps from 0, or loop over those that come: "
            "'for step in tracer.iter[:]:'"
        )
    if run.tap_for(place).begun:
        return OutOfOrderError(
            f"{location} was called {run.tap_for(place).begun} times in this run, and visit "
            f"{machine.step} was asked for; count visits from 0"
        )
    absence = place._absence()
    layer = next((one for one in ancestors(place) if is_fast_layer(one._module)), None)
    if layer is not None and layer is not place and not layer._module.training:
        absence += (
            f"; {layer._path or 'the model'} has a fast path, which it leaves where something "
            "inside it is asked for before it is called: move this access up, or call "
            "torch.backends.mha.set_fastpath_enabled(False)"
        )
    return NotCalledError(f"{location} was never computed: {absence}")


def never_bound(name: str) -> Exception:
    """The invoke that would have bound a name has ended."""
    return SharedNameError(
        f"name {name!r} was never bound: an earlier invoke binds it, but came to its end without "
        "doing so; bind it in every branch, or before the invokes"
    )


def nested_invoke() -> Exception:
    """An invoke was opened by a block that runs."""
    return InvokeError(
        "an invoke was opened while another one runs; write the invokes one after the other, each "
        "'with tracer.invoke(...):' directly in the trace"
    )


def value_in_builder(request: Request, *, has_invokes: bool, is_session: bool) -> Exception:
    """A session, a trace without input or one that consists of invokes reads a value directly."""
    if is_session:
        return NotRunningError(
            f"{location_of(request)} is asked for in a session, and outside of its traces; no "
            "model runs there: read it in 'with model.trace(...):', whose names are the session's"
        )
    if not has_invokes:
        return no_input()
    return InvokeError(
        f"{location_of(request)} is asked for in a trace that consists of invokes, and outside of "
        "them; move the access into an invoke ('with tracer.invoke():' sees all rows)"
    )


def no_input() -> Exception:
    """There is nothing to run the model on."""
    return NoInputError(
        "this trace has neither an input nor an invoke with one, so the model cannot run; write "
        "model.trace(input), or 'with tracer.invoke(input):' inside the block"
    )


def steps_in_builder() -> Exception:
    """A trace that consists of invokes loops over steps outside of them."""
    return InvokeError(
        "a loop over steps is in a trace that consists of invokes, and outside of them; move "
        "the loop into an invoke"
    )


def barrier_in_builder() -> Exception:
    """A barrier is waited at outside of the invokes."""
    return BarrierError(
        "a barrier is waited at outside of the invokes; call it inside each invoke that takes part"
    )


def barrier_without_enough(run: Run, barrier: Barrier, *, here: int) -> Exception:
    """Too few invokes are left for a barrier, so that its waiters would never be resumed.

    Args:
        run: the run.
        barrier: the barrier.
        here: number of invokes that have arrived and are not yet in `barrier.arrived`.
    """
    running = sum(not machine.is_done for machine in run.machines)
    return BarrierError(
        f"{len(barrier.arrived) + here} of {barrier.participants} invokes came to this barrier, "
        f"and only {running} of this run can still come; make the barrier for as many invokes as "
        "wait at it, each as often"
    )


def stop_in_builder() -> Exception:
    """A trace that consists of invokes is stopped outside of them."""
    return InvokeError(
        "tracer.stop() is in a trace that consists of invokes, and outside of them; call it in "
        "the invoke that is to end (the model stops when no other one waits)"
    )


def other_model(request: Request, place: Place, root: Place) -> Exception:
    """The place belongs to another model than the one that runs, or not to the part that runs."""
    whole = root._whole()._module
    if root._path and place._root is not None and place._root._whole()._module is whole:
        return NotRunningError(
            f"{location_of(request)} is not in {root._path}, the part of the model that this run "
            "is of; use it in a trace of the whole model, or of a part that it is in"
        )
    return NotRunningError(
        f"{location_of(request)} belongs to another model than the one of this trace; read it in a "
        "trace of that model, and save it there"
    )


def outside(what: str) -> Exception:
    """A model value is asked for while no model runs."""
    return NotRunningError(
        f"{what} has a value only while the model runs; read it inside 'with model.trace(...):' "
        "and save it there to use it afterwards"
    )


def warn_of_missing_steps(machine: Machine, steps: Steps, taken: int | None) -> None:
    """Warn that a bounded loop was not reached, at the line of the loop.

    Args:
        machine: the machine that loops.
        steps: its loop.
        taken: how many steps the generation took; None in a run other than a generation.
    """
    if steps.is_open:
        _warn_of_open(machine)
        return
    if taken is None:
        seen = f"visit {steps.next_step} (from 0), and no module that is looked at had so many"
    else:
        seen = f"step {steps.next_step} (from 0), and the generation ended after {taken} steps"
    _warn_of_loop(machine, seen)


def warn_of_missing_visits(machine: Machine, request: Request, taken: int) -> None:
    """Warn that a round of a loop waited for a visit that never came."""
    if machine.loops[-1].is_open:
        _warn_of_open(machine)
        return
    _warn_of_loop(
        machine,
        f"visit {machine.step} (from 0) of {location_of(request)}, which had {taken} visits",
    )


def warn_of_missing_values(machine: Machine, request: Request, taken: int) -> None:
    """Warn that a round of a loop, in which there are tokens, has no forward."""
    if machine.loops[-1].is_open:
        _warn_of_open(machine)
        return
    seen = f"{location_of(request)} in step {machine.step} (from 0), and the generation ended"
    _warn_of_loop(machine, f"{seen} after {taken} steps")


def _warn_of_open(machine: Machine) -> None:
    warnings.warn_explicit(
        "a loop over all steps ended with the run; nnsight 0.8 leaves out what follows such a loop "
        "in its block, and here it runs: give the loop its number of steps, or move what follows "
        "it to an invoke of its own",
        UserWarning,
        machine.program.filename,
        machine.line,
    )


def _warn_of_loop(machine: Machine, seen: str) -> None:
    warnings.warn_explicit(
        f"the loop waited for {seen}; values that the loop saved until then are kept",
        UserWarning,
        machine.program.filename,
        machine.line,
    )


_warned: set[tuple[str, int]] = set()


def warn_of_first_row(machine: Machine, place: Place) -> None:
    """Warn once, at a line that takes `[0]` of an output that was a tuple and is now a tensor."""
    program, line = machine.program, machine.line
    key = (program.filename, line)
    if line not in program.first_items or key in _warned:
        return
    if not any(cls.__name__ == "GradientCheckpointingLayer" for cls in type(place._module).__mro__):
        return
    _warned.add(key)
    warnings.warn_explicit(
        f"the output of {place._path} is a tensor, so .output[0] is its first row; transformers "
        "before 5 returned a tuple here: write .output",
        UserWarning,
        program.filename,
        line,
    )


_EAGER = (
    "attention weights are computed only with attn_implementation='eager', and are in the model's "
    "output only with output_attentions=True; load the model so, or write "
    "model.set_attn_implementation('eager')"
)


def warn_of_no_weights(machine: Machine) -> None:
    """Warn once, at a line about attention that saves None."""
    program, line = machine.program, machine.line
    key = (program.filename, line)
    if key in _warned or not _is_about_attention(*key):
        return
    _warned.add(key)
    warnings.warn_explicit(f"None is saved here; {_EAGER}", UserWarning, program.filename, line)


def explain_no_weights(error: BaseException) -> None:
    """Add the fix to an error at a line that uses attention weights that are None."""
    if not isinstance(error, (AttributeError, TypeError)) or "'NoneType'" not in str(error):
        return
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is not None and _is_about_attention(
        place.tb_frame.f_code.co_filename, place.tb_lineno
    ):
        error.add_note(_EAGER)


def _is_about_attention(filename: str, line: int) -> bool:
    text = linecache.getline(filename, line)
    return "attn" in text or "attention" in text


def model_failed(error: BaseException, suspects: Sequence[Suspect]) -> BaseException:
    """Return the error to raise when the model itself has failed."""
    clean(error)
    if not suspects or not isinstance(error, Exception):
        return error
    last = suspects[-1]
    found = WriteShapeError(
        f"the model failed after line {last.line} wrote {last.difference} to {last.location} "
        f"({type(error).__name__}: {_first_line(error)}); write a value of the form it replaces"
    )
    found.__cause__ = error
    found.__traceback__ = traceback_at(last.filename, last.line, last.function)
    return found


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or [""])[0]
