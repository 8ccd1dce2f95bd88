"""An interpreter of blocks that is made of plain hooks and plain Python.

It is what a block is compared with, and shares nothing with the package but the classes of its
errors. The statements of a block are compiled by Python as they are written, and run on a greenlet
beside the model. Where a model stands in them, they find a `Mirror`: its `output`, `input` and
`inputs` ask the `Run`, which answers from ordinary forward hooks on the modules and puts what was
written into what those hooks return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import CodeType
from typing import Any

import torch
from greenlet import getcurrent
from torch import nn
from torch.utils import _pytree as pytree
from transformers.utils import ModelOutput

from nnsight_dsl.errors import (
    BarrierError,
    GenerationEndedError,
    NotCalledError,
    NotRunningError,
    OutOfOrderError,
    SharedNameError,
    WriteError,
    WriteShapeError,
)
from nnsight_dsl.runtime.errors import RunEnded
from nnsight_dsl.runtime.machines.carrying import new_carrier
from tests.differential.worlds import observing

FILENAME = "<what plain hooks make of it>"
_MOST_CLOSING_REQUESTS = 100


class _Offer:
    def __init__(self, module: nn.Module, phase: str, index: int | None, value: Any) -> None:
        self.module, self.phase, self.index, self.value = module, phase, index, value
        self.seen: dict[Any, Any] = {}


class _Visits:
    """What is known of one module: which visits have begun and ended, and what is skipped."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.begun = 0
        self.done = 0
        self.begun_step = -1
        self.done_step = -1
        self.running: list[int | None] = []
        self.skipped: list[tuple[Machine, Any, str]] = []
        self.is_skipped = False


class _Skipping:
    """A module's `forward` that does nothing in a skipped call, until it is removed."""

    def __init__(self, visits: _Visits) -> None:
        module = self._module = visits.module
        self._before = module.__dict__.get("forward", _MISSING)
        forward = module.forward

        @wraps(forward)
        def skipping(*args: Any, **kwargs: Any) -> Any:
            if visits.is_skipped:
                visits.is_skipped = False
                return next(value for one, value, _ in visits.skipped if one.rows is None)
            return forward(*args, **kwargs)

        module.forward = skipping

    def remove(self) -> None:
        if self._before is _MISSING:
            del self._module.forward
        else:
            self._module.forward = self._before


_MISSING = object()
_GOES_ON = object()
"""An answer of a machine that is to go on later, in its turn."""


class Machine:
    """One block, on a greenlet."""

    def __init__(self, code: CodeType, names: dict[str, Any], rows: tuple[int, int] | None) -> None:
        self.names = names
        self.rows = rows
        self.step = 0
        self.order = 0
        self.pending: Any = None
        self.is_done = False
        self.has_failed = False
        self.skipped: list[nn.Module] = []
        self.saved: frozenset[int] | None = None
        self._had_grad = True
        self._own_grad: bool | None = None
        self._greenlet = new_carrier(lambda: exec(code, names))
        self._greenlet.machine = self

    def resume(self, answer: Any, error: BaseException | None) -> Any:
        """Go on; return the next request, None at the end of the block."""
        before = torch.is_grad_enabled()
        if self._own_grad is not None:
            torch._C._set_grad_enabled(self._own_grad)
        entered = torch.is_grad_enabled() if self._own_grad is None else None
        try:
            if error is not None:
                request = self._greenlet.throw(error)
            elif self._greenlet:
                request = self._greenlet.switch(answer)
            else:
                request = self._greenlet.switch()
        except BaseException:
            self._end()
            raise
        finally:
            now = torch.is_grad_enabled()
            # what the block has set holds for the block, until it is put back
            base = entered if entered is not None else self._had_grad
            self._had_grad = base
            self._own_grad = now if now != base else None
            torch._C._set_grad_enabled(before)
        if self._greenlet.dead:
            self._end()
            return None
        return request

    def _end(self) -> None:
        """Note what has been saved: its names leave by that, whatever is saved later."""
        self.is_done = True
        self.saved = self.names["save"].__self__.identities()


class _Stopped(BaseException):
    """Takes a run out of the model."""


class Run:
    """One run of a model with some blocks, served from hooks."""

    def __init__(self, root: nn.Module, total: int = 0, *, is_stepped: bool = False) -> None:
        self.root = root
        self.total = total
        self.is_stepped = is_stepped
        self.step = -1
        self.machines: list[Machine] = []
        self.has_ended = False
        self.is_closing = False
        self.failure: BaseException | None = None
        self.shared: dict[str, Any] = {}
        self.suspect: str | None = None
        self.suspect_by: Machine | None = None
        self.cache: dict[str, list[Any]] | None = None
        self.observed: list[nn.Module] = []
        self._home = getcurrent()
        self._offers: list[_Offer] = []
        self._visits: dict[int, _Visits] = {}
        self._handles: list[Any] = []
        self._ready: list[tuple[Machine, Any]] = []
        self._result: Any = None
        # of each call that some have skipped, which
        self._apart: list[list[Machine]] = []
        self._is_quiet = 0

    # blocks

    def machine(self) -> Machine:
        machine: Machine = getcurrent().machine
        return machine

    def ask(self, request: tuple[Any, ...]) -> Any:
        """Ask for something from inside of a block."""
        if self.is_closing:
            raise NotRunningError("the run has ended")
        return self._home.switch(request)

    def add(self, machine: Machine) -> None:
        machine.order = len(self.machines)
        self.machines.append(machine)

    # the run

    def run(self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run the model with all blocks.

        Raises:
            BaseException: what a block or the model has raised.
        """
        result = None
        observing.append(self)
        try:
            for module in [*self.root.modules()]:
                self._visits_of(module)
            for machine in self.machines:
                if machine.pending is None and not machine.is_done:
                    self.drive(machine)
            if not self._may_stop():
                result = function(*args, **kwargs)
                self._finish(result)
        except _Stopped:
            pass
        except BaseException as error:
            self.failure = self.failure or self._explained(error)
        finally:
            observing.pop()
            self._close()
        if self.failure is not None:
            raise self.failure
        return result

    _stopping = False

    def _may_stop(self) -> bool:
        return self._stopping and all(machine.is_done for machine in self.machines)

    def _explained(self, error: BaseException) -> BaseException:
        if self.suspect is None or not isinstance(error, Exception):
            return error
        found = WriteShapeError(self.suspect)
        found.line_of_write = self.suspect  # type: ignore[attr-defined]
        return found

    def _close(self) -> None:
        self.has_ended = True
        self._offers = []
        for handle in self._handles:
            handle.remove()
        for machine in self.machines:
            if machine.is_done:
                continue
            try:
                self._end(machine)
            except BaseException as raised:
                self.failure = self.failure or raised

    def _end(self, machine: Machine) -> None:
        """End a block that waits, so that its `finally` and `with` statements run."""
        machine.is_done = True
        error: BaseException = RunEnded()
        for _ in range(_MOST_CLOSING_REQUESTS):
            try:
                if machine.resume(None, error) is None:
                    return
            except RunEnded:
                return
            except BaseException:
                machine.has_failed = self.failure is None
                raise
            error = NotRunningError("the run has ended")

    def _finish(self, result: Any) -> None:
        self.has_ended = True
        self._result = (result,)
        self._seen: dict[Any, Any] = {}
        for machine in self.machines:
            if machine.pending is not None and machine.pending[0] == "step":
                self.drive(machine, False)
        for machine in self.machines:
            if machine.pending is not None and machine.pending[0] == "result":
                self.drive(machine, self._narrow(machine, result, self._seen))
        for machine in self.machines:
            if machine.pending is not None and not machine.is_done:
                self.drive(machine, error=self._never_came(machine, machine.pending))

    def _never_came(self, machine: Machine, request: Any) -> BaseException:
        if request[0] == "name":
            return SharedNameError(request[1])
        if request[0] == "meet":
            return BarrierError("too few")
        if self.is_stepped and machine.step > self.step >= 0:
            return GenerationEndedError("over")
        if any(above in machine.skipped for above in self._above(request[1])):
            return NotCalledError("in what it has skipped")
        if self._visits_of(request[1]).begun:
            return OutOfOrderError("never so often")
        return NotCalledError("never came")

    # hooks

    def _visits_of(self, module: nn.Module) -> _Visits:
        found = self._visits.get(id(module))
        if found is None:
            found = self._visits[id(module)] = _Visits(module)
            hook = self._unless_observed(self.before)
            before = module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
            after = module.register_forward_hook(self._unless_observed(self.after))
            self._handles += [before, after, _Skipping(found)]
        return found

    def _unless_observed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Leave modules out whose call is patched: the patch itself shows what passes."""

        def called(module: nn.Module, *values: Any) -> Any:
            is_observed = bool(self.observed) and self.observed[-1] is module
            return None if is_observed else hook(module, *values)

        return called

    def _is_here(self) -> bool:
        return getcurrent() is self._home and not self._is_quiet

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self._is_here():
            return None
        visits = self._visits_of(module)
        if self.is_stepped:
            if module is self.root:
                self._begin_step()
            step = max(self.step, 0)
            index = None if visits.begun_step == step else step
            visits.begun_step = step
        else:
            index = visits.begun_step = visits.begun
        visits.begun += 1
        visits.running.append(index)
        given = self._serve(_Offer(module, "inputs", index, (args, kwargs)))
        if visits.skipped:
            # a value for all rows: the module is not called
            visits.is_skipped = any(one.rows is None for one, _, _ in visits.skipped)
            n_rows = sum(one.rows[1] for one, _, _ in visits.skipped if one.rows is not None)
            if visits.is_skipped or n_rows == self.total:
                self._is_quiet += 1
            else:
                # called for the others' rows: those that skip see nothing of it
                self._apart.append([one for one, _, _ in visits.skipped])
                for one in self._apart[-1]:
                    one.skipped.append(module)
        return given

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        visits = self._visits_of(module)
        if visits.skipped and (self._is_quiet or self._is_apart_for(visits)):
            if self._is_apart_for(visits):
                self._apart.pop()
            else:
                self._is_quiet -= 1
            for machine, value, line in visits.skipped:
                try:
                    output = self._widen(output, value, machine)
                except WriteError as error:
                    # of the line that asked for the skip
                    error.line_of_write, self.suspect_by = line, machine  # type: ignore[attr-defined]
                    raise
            visits.skipped = []
        if not self._is_here():
            return output
        index = visits.running.pop()
        output = self._serve(_Offer(module, "output", index, output))
        if self.cache is not None:
            self._keep(module, output)
        visits.done += 1
        if index is not None and index > visits.done_step:
            visits.done_step = index
        return output

    def _is_apart_for(self, visits: _Visits) -> bool:
        skipping = [one for one, _, _ in visits.skipped]
        return bool(self._apart) and self._apart[-1] == skipping

    def _keep(self, module: nn.Module, output: Any) -> None:
        path = next(path for path, one in self.root.named_modules() if one is module)
        if path.rpartition(".")[2].startswith("after_"):
            return
        copy = pytree.tree_map(
            lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, output
        )
        self.cache.setdefault(f"model.{path}" if path else "model", []).append(copy)

    def _begin_step(self) -> None:
        self.step += 1
        for machine in self.machines:
            request = machine.pending
            if request is None or request[0] not in ("read", "write", "skip"):
                continue
            if machine.step < self.step:
                self.drive(machine, error=NotCalledError("not in this step"))
        for machine in self.machines:
            if machine.pending == ("step", self.step):
                self.drive(machine, True)

    def _serve(self, offer: _Offer) -> Any:
        self._offers.append(offer)
        try:
            for machine in self.machines:
                request = machine.pending
                if request is None or request[0] not in ("read", "write", "skip"):
                    continue
                if self._is_offered(machine, request):
                    self.drive(machine, request=request)
        finally:
            self._offers.pop()
        return offer.value

    # answers

    def drive(
        self,
        machine: Machine,
        answer: Any = None,
        error: BaseException | None = None,
        request: Any = None,
    ) -> None:
        """Resume a block, and answer what it asks for, until it has to wait or ends."""
        while True:
            if request is None:
                machine.pending = None
                try:
                    request = machine.resume(answer, error)
                except BaseException as raised:
                    self.failure = raised
                    machine.has_failed = True
                    raise _Stopped from None
                answer = error = None
                if machine.is_done:
                    self._ended(machine)
            is_answered = False
            if request is not None:
                try:
                    is_answered, answer = self._answer(machine, request)
                except (_Stopped, RunEnded):
                    raise
                except Exception as raised:
                    if machine.is_done:
                        self.failure = raised
                        raise _Stopped from None
                    error, request = raised, None
                    continue
                if not is_answered and answer is not _GOES_ON:
                    machine.pending = request
            request = None
            if not is_answered:
                if not self._ready:
                    return
                self._ready.sort(key=lambda ready: ready[0].order)
                machine, answer = self._ready.pop(0)

    def _ended(self, machine: Machine) -> None:
        for other in self.machines:
            request = other.pending
            if request is not None and request[0] == "meet" and self._n_running() < request[1]:
                request[2].remove(other)
                self.drive(other, error=BarrierError("too few are left"))
        if self._may_stop() and not self.has_ended and not self._ready:
            raise _Stopped

    def _n_running(self) -> int:
        return sum(not machine.is_done for machine in self.machines)

    def _is_offered(self, machine: Machine, request: Any) -> bool:
        if not self._offers or any(machine in each for each in self._apart):
            return False
        offer = self._offers[-1]
        _, module, port, _ = request
        phase = "output" if port == "output" else "inputs"
        return offer.module is module and offer.phase == phase and offer.index == machine.step

    def _answer(self, machine: Machine, request: Any) -> tuple[bool, Any]:
        verb = request[0]
        if verb == "result":
            if self._result is None:
                return False, None
            return True, self._narrow(machine, self._result[0], self._seen)
        if verb == "step":
            number = request[1]
            if self.has_ended:
                return True, False
            if self.step > number:
                raise OutOfOrderError("that step is over")
            return self.step == number, True
        if verb == "meet":
            _, participants, arrived = request
            if self._n_running() < participants:
                raise BarrierError("too few come")
            arrived.append(machine)
            if len(arrived) >= participants:
                for other in arrived:
                    other.pending = None
                    self._ready.append((other, None))
                arrived.clear()
                return False, _GOES_ON
            return False, None
        if verb == "stop":
            self._stopping = True
            self._end(machine)
            self._ended(machine)
            return False, None
        if verb == "tell":
            _, name, value = request
            self.shared[name] = value
            waiting = [m for m in self.machines if m.pending == ("name", name)]
            for other in waiting:
                other.pending = None
                self._ready.append((other, value))
            if not waiting:
                return True, None
            self._ready.append((machine, None))
            return False, _GOES_ON
        if verb == "name":
            name = request[1]
            if name in self.shared:
                return True, self.shared[name]
            if all(other.is_done for other in self.machines[: machine.order]):
                raise SharedNameError(name)
            return False, None
        if not self._is_offered(machine, request):
            self._refuse_what_is_over(machine, request)
            return False, None
        return True, self._at_offer(machine, request)

    def _at_offer(self, machine: Machine, request: Any) -> Any:
        verb, module, port, value = request
        offer = self._offers[-1]
        if verb == "skip":
            self._visits_of(module).skipped.append((machine, value, _line_of_block(machine)))
            return None
        old = offer.value
        if port == "input":
            args, kwargs = old
            old = args[0] if args else next(iter(kwargs.values()))
        if verb == "read":
            return self._narrow(machine, old, offer.seen)
        if machine.rows is None and _form(old) != _form(value):
            self.suspect, self.suspect_by = _line_of_block(machine), machine
        new = self._widen(old, value, machine)
        if port == "input":
            if args:
                offer.value = (new, *args[1:]), kwargs
            else:
                offer.value = args, {**kwargs, next(iter(kwargs)): new}
        else:
            offer.value = new
        return None

    def _refuse_what_is_over(self, machine: Machine, request: Any) -> None:
        _, module, port, _ = request
        visits = self._visits_of(module)
        step = machine.step
        if (visits.done_step if port == "output" else visits.begun_step) >= step:
            if self.is_stepped and self.has_ended:
                raise GenerationEndedError("over")
            raise OutOfOrderError("passed")
        if self.is_stepped and self.has_ended:
            raise GenerationEndedError("over")
        if self.step > step:
            raise NotCalledError("not in this step")
        if self.has_ended:
            raise self._never_came(machine, request)
        for above in self._above(module):
            over = self._visits.get(id(above))
            if over is not None and over.done_step >= step and over.begun == over.done:
                raise OutOfOrderError("its parent has returned")

    def _above(self, module: nn.Module) -> list[nn.Module]:
        paths = [path for path, one in self.root.named_modules() if one is module]
        found = []
        for path in paths:
            while path:
                path = path.rpartition(".")[0]
                found.append(self.root.get_submodule(path))
        return found

    # rows

    def _span(self, tensor: Any, machine: Machine) -> slice | None:
        if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0 or machine.rows is None:
            return None
        start, n = machine.rows
        return slice(start, start + n) if tensor.shape[0] == self.total else None

    def _narrow(self, machine: Machine, value: Any, seen: dict[Any, Any]) -> Any:
        # a second read gives the same object, as it does in a run of one input
        if machine.rows is None:
            return value
        key = id(value), machine.rows
        if key not in seen:
            # with the value, so that its id stays its own
            seen[key] = value, self._part(machine, value, seen)
        return seen[key][1]

    def _part(self, machine: Machine, value: Any, seen: dict[Any, Any]) -> Any:
        if isinstance(value, torch.Tensor):
            span = self._span(value, machine)
            return value if span is None else value[span]
        if type(value) in (tuple, list):
            return type(value)(self._narrow(machine, one, seen) for one in value)
        if type(value) is dict:
            return {key: self._narrow(machine, one, seen) for key, one in value.items()}
        if isinstance(value, ModelOutput):
            return type(value)(
                {key: self._narrow(machine, one, seen) for key, one in value.items()}
            )
        return value

    def _widen(self, whole: Any, part: Any, machine: Machine) -> Any:
        if machine.rows is None or part is whole:
            return part
        if isinstance(whole, torch.Tensor):
            span = self._span(whole, machine)
            if span is None or _form(part) != _form(whole[span]):
                raise WriteError("this does not fit the rows")
            if part.data_ptr() == whole[span].data_ptr() and part.stride() == whole.stride():
                # these rows of it, edited in place
                return whole
            return torch.cat([whole[: span.start], part, whole[span.stop :]])
        if type(part) is not type(whole):
            raise WriteError("this is of another structure")
        if type(whole) in (tuple, list):
            if len(part) != len(whole):
                raise WriteError("this is of another length")
            pairs = zip(whole, part, strict=True)
            return type(whole)(self._widen(one, other, machine) for one, other in pairs)
        if type(whole) is dict:
            if part.keys() != whole.keys():
                raise WriteError("this has other keys")
            return {key: self._widen(one, part[key], machine) for key, one in whole.items()}
        if part != whole:
            raise WriteError("this is not of the invoke's rows")
        return part


def _form(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, (tuple, list)):
        return type(value), [_form(one) for one in value]
    return type(value)


def _line_of_block(machine: Machine) -> str:
    frame = machine._greenlet.gr_frame
    while frame is not None:
        if frame.f_code.co_filename == FILENAME:
            return str(frame.f_lineno)
        frame = frame.f_back
    return ""
