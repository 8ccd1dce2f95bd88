"""Programs on their way to the engine, and what they have saved on its way back.

A program travels as its recipe (`transforms/recipes.py`): the text that it was lowered from and
what it takes to lower it again, which the engine does once for each text. With it come the values
of the names that it takes from around it. The model and its modules, the tracer, and the engine's
logits and samples are not sent: they go by name, and stand at the other end for those there.

Everything is pickled by `cloudpickle` (vLLM brings it), so that functions of the user's own
module travel by value: the engine may run in a process that cannot import that module. Only such
functions bind a payload to one version of Python, and only a payload that has some names it.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, TracebackType
from typing import Any

import torch

from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.envoys.source import Source, SourceOperation
from nnsight_dsl.modeling.vllm.client.effects import ANYTHING, Reach
from nnsight_dsl.modeling.vllm.engine_places import EnginePlace, EngineRoot, EngineValue
from nnsight_dsl.runtime.errors import InterventionError
from nnsight_dsl.runtime.locations import Place
from nnsight_dsl.runtime.tracebacks import line_of, traceback_at
from nnsight_dsl.tracing.tracer import Tracer
from nnsight_dsl.transforms.bytecode.globals import global_names
from nnsight_dsl.transforms.program import Program
from nnsight_dsl.transforms.recipes import lower_again

KEY = "nnsight_dsl"
"""Key of `SamplingParams.extra_args` under which a payload travels."""

WHOLE = "whole"
"""Key beside the payload: whether the prompt is to be computed in one piece."""

_FORMAT = 3
_PYTHON = sys.version_info[:2]
_MUTABLE = (list, dict, set)


@dataclass(slots=True)
class Part:
    """One program of a request, with what its names stand for.

    Attributes:
        program: what runs.
        user_globals: the globals that it reads.
        names: the names that it takes from around it.
        is_for_each_step: whether it starts anew in each step, as an edit does.
        leaves_all: whether all its names leave, saved or not.
        reach: what it can do at most.
    """

    program: Program
    user_globals: dict[str, Any]
    names: dict[str, Any]
    is_for_each_step: bool = False
    leaves_all: bool = False
    reach: Reach = ANYTHING


@dataclass(slots=True)
class Outcome:
    """What a request's programs have left.

    Attributes:
        names: the names that leave the block.
        saved: those of them that may leave what is around it, too.
        returned: what the block returned, if it is an intervention.
        changed: containers around the block that it has added to, by name.
        failure: what it raised.
        frames: file, line and function of each entry of that one's traceback.
        warnings: text, category, file and line of what it was warned of.
    """

    names: dict[str, Any] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    returned: Any = None
    changed: dict[str, Any] = field(default_factory=dict)
    failure: BaseException | None = None
    frames: list[tuple[str, int, str]] = field(default_factory=list)
    warnings: list[tuple[str, type[Warning], str, int]] = field(default_factory=list)


def _reference_to(value: Any) -> tuple[str, ...] | None:
    """Name what is at both ends, as `("envoy", path)`; return None for what has to be sent."""
    if not isinstance(value, (Place, Tracer)):
        return None
    if isinstance(value, Envoy) and isinstance(value._root, EngineRoot):
        return ("envoy", value._path)
    if isinstance(value, (Source, SourceOperation)) and isinstance(value._root, EngineRoot):
        return _operation_named(value)
    if isinstance(value, EnginePlace):
        return ("place", value._path)
    return ("tracer",) if isinstance(value, Tracer) else None


def _operation_named(value: Source | SourceOperation) -> tuple[str, ...]:
    """Name an operation by its module and the operations around it; a source ends in nothing."""
    names: list[str] = [] if isinstance(value, SourceOperation) else [""]
    place: Place | None = value if isinstance(value, SourceOperation) else value._parent
    while isinstance(place, SourceOperation):
        names.append(place._name)
        place = place._parent
    return ("operation", "" if place is None else place._path, *reversed(names))


@cache
def _pickler() -> Any:
    """Return the class of picklers; vLLM's library is imported when the first is made."""
    from cloudpickle import Pickler

    class ReferringPickler(Pickler):
        to_cpu = False
        has_code = False

        def reducer_override(self, obj: Any) -> Any:
            # not `persistent_id`, which is asked of every number and name, too
            reference = _reference_to(obj)
            if reference is not None:
                return _here, reference
            if type(obj) is torch.Tensor or type(obj) is EngineValue:
                kept = _compact(obj, to_cpu=self.to_cpu)
                if _is_simple(kept):
                    # torch's own way takes fifty times as long for a small tensor
                    data = kept.reshape(-1).view(torch.uint8).numpy().tobytes()
                    return _tensor_of, (data, kept.dtype, tuple(kept.shape))
                if kept is not obj:
                    return kept.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            self.has_code = self.has_code or type(obj) is CodeType
            return super().reducer_override(obj)

    return ReferringPickler


def _pickled(value: Any, *, to_cpu: bool = False) -> bytes:
    return _pickled_with_version(value, to_cpu=to_cpu)[0]


def _pickled_with_version(
    value: Any, *, to_cpu: bool = False
) -> tuple[bytes, tuple[int, int] | None]:
    """Return a value as bytes, and the version of Python that code in it was made for, if any."""
    buffer = io.BytesIO()
    pickler = _pickler()(buffer, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.to_cpu = to_cpu
    pickler.dump(value)
    return buffer.getvalue(), _PYTHON if pickler.has_code else None


def _is_simple(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is no more than numbers in the memory of this machine."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not tensor.requires_grad
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
        and not tensor.__dict__
    )


def _tensor_of(data: bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Make a tensor of the bytes that were in one."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _compact(tensor: torch.Tensor, *, to_cpu: bool) -> torch.Tensor:
    """Return a tensor without the storage that it is only a part of."""
    plain = tensor.as_subclass(torch.Tensor) if type(tensor) is EngineValue else tensor
    if to_cpu and plain.device.type != "cpu":
        return plain.detach().cpu()
    if plain.is_inference() or (
        plain.layout == torch.strided
        and plain.untyped_storage().nbytes() > plain.numel() * plain.element_size()
    ):
        with torch.inference_mode(False), torch.no_grad():
            return plain.detach().clone()
    return plain


_ends: ContextVar[tuple[EngineRoot, Tracer | None]] = ContextVar("_ends")
"""The model and the tracer at this end, while something is unpickled."""


def _here(kind: str, *rest: str) -> Any:
    """Return what `_reference_to` has named, at this end."""
    root, tracer = _ends.get()
    if kind == "envoy":
        return root.get(rest[0])
    if kind == "operation":
        found: Any = root.get(rest[0])
        for name in rest[1:]:
            found = found.source[name] if name else found.source
        return found
    return tracer if kind == "tracer" else root._places[rest[0]]


def _unpickled(data: bytes, root: EngineRoot, tracer: Tracer | None) -> Any:
    token = _ends.set((root, tracer))
    try:
        return pickle.loads(data)
    finally:
        _ends.reset(token)


# programs


def dump_parts(parts: Sequence[Part], rename: Mapping[str, Any]) -> bytes:
    """Return the programs of a request as bytes.

    Raises:
        InterventionError: a value that a program takes from around it cannot be pickled.
    """
    from cloudpickle import register_pickle_by_value, unregister_pickle_by_value

    modules = [sys.modules.get(part.user_globals.get("__name__", "")) for part in parts]
    by_value = {one.__name__: one for one in modules if one is not None}
    by_value.pop("__main__", None)  # always is
    for module in by_value.values():
        register_pickle_by_value(module)
    try:
        values = [(_globals_of(part), _names_of(part)) for part in parts]
        flags = [(part.is_for_each_step, part.leaves_all) for part in parts]
        programs = [(part.program.recipe, part.program.number) for part in parts]
        data, python = _each_pickled(parts, values)
        return _pickled(((_FORMAT, python), dict(rename), programs, flags, data))
    finally:
        for module in by_value.values():
            unregister_pickle_by_value(module)


def _each_pickled(
    parts: Sequence[Part], values: Sequence[tuple[Any, Any]]
) -> tuple[bytes, tuple[int, int] | None]:
    try:
        return _pickled_with_version(values)
    except Exception as error:
        for part, (user_globals, names) in zip(parts, values, strict=True):
            for name, value in {**user_globals, **names}.items():
                try:
                    _pickled(value)
                except Exception:
                    raise InterventionError(
                        f"the block at line {part.program.line} takes {name!r} from around it, "
                        f"a {type(value).__name__}, which cannot be sent to the engine "
                        f"({type(error).__name__}: {error}); make it in the block, or take from "
                        "it what the block needs before the block"
                    ) from None
        raise


def rename_in(data: tuple[Any, ...]) -> dict[str, Any]:
    """Return the aliases that a payload's paths are written with."""
    rename: dict[str, Any] = data[1]
    return rename


def opened(data: bytes) -> tuple[Any, ...]:
    """Unpack a payload as far as it can be without a model.

    Raises:
        InterventionError: it was made by another version of this package, or brings functions of
            another version of Python.
    """
    found: tuple[Any, ...] = pickle.loads(data)
    number, python = found[0]
    if number != _FORMAT:
        raise InterventionError(
            f"a program was sent in form {number} and the engine reads form {_FORMAT}; use the "
            "same version of nnsight_dsl at both ends"
        )
    if python is not None and python != _PYTHON:
        raise InterventionError(
            f"a block takes functions from around it, whose code is of Python {_dotted(python)}, "
            f"and the engine runs Python {_dotted(_PYTHON)}; use the same version at both ends, "
            "decorate the functions with @intervene, or import them from a module at both ends"
        )
    return found


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def load_parts(data: tuple[Any, ...], root: EngineRoot, tracer: Tracer) -> list[Part]:
    """Return the programs of an unpacked payload, with places of a model here.

    Raises:
        InterventionError: the text of a program cannot be lowered here.
    """
    _, _, programs, flags, values = data
    loaded = _unpickled(values, root, tracer)
    parts = []
    for (recipe, number), flag, (user_globals, names) in zip(programs, flags, loaded, strict=True):
        parts.append(Part(_program_of(recipe, number), user_globals, names, *flag))
    return parts


def _program_of(recipe: str, number: int) -> Program:
    try:
        return lower_again(recipe)[number]
    except SyntaxError as error:
        raise InterventionError(
            f"line {error.lineno} of {error.filename} cannot be lowered by the engine, which runs "
            f"Python {_dotted(_PYTHON)} ({error.msg}); write it otherwise, or use the same "
            "versions at both ends"
        ) from None


def _globals_of(part: Part) -> dict[str, Any]:
    """Collect the globals that a program reads; those that are not there are builtins."""
    program = part.program
    wanted = {*program.params, *_roots(program)} - part.names.keys()
    for one in program.all_programs():
        wanted |= global_names(one.code)
    found = {name: part.user_globals[name] for name in wanted if name in part.user_globals}
    return {**found, "__name__": part.user_globals.get("__name__", "<nnsight_dsl>")}


def _names_of(part: Part) -> dict[str, Any]:
    program = part.program
    wanted = {*program.params, *_roots(program)}
    if program.looks_outside:
        wanted |= set(re.findall(r"[^\W\d]\w*", program.source))
    return {name: part.names[name] for name in wanted if name in part.names}


def _roots(program: Program) -> set[str]:
    found = {state.root for one in program.all_programs() for state in one.states if state.root}
    if program.plain is not None:
        found |= program.plain.roots
    return found


def sizes_of(names: Mapping[str, Any]) -> dict[str, int]:
    """Note how much the containers around a block hold before it runs."""
    return {name: len(value) for name, value in names.items() if type(value) in _MUTABLE}


def changed_in(names: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return what was added to the containers around a block while it ran."""
    changed: dict[str, Any] = {}
    for name, size in sizes.items():
        value = names[name]
        if len(value) > size:
            changed[name] = value[size:] if isinstance(value, list) else value
    return changed


def add_changes(names: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Add to the containers at this end what the block has added at the other."""
    for name, added in changed.items():
        value = names.get(name)
        if isinstance(value, list):
            value.extend(added)
        elif isinstance(value, (dict, set)):
            value.update(added)


# outcomes


def dump_outcome(outcome: Outcome) -> bytes:
    """Return what a request's programs have left as bytes; tensors go to the CPU."""
    failure = outcome.failure
    if failure is not None:
        outcome.frames = _frames_of(failure.__traceback__)
        outcome.failure = _shippable(failure)
    try:
        return _pickled(outcome, to_cpu=True)
    except Exception as error:
        failed = InterventionError(
            f"what the block has saved cannot be sent from the engine ({type(error).__name__}: "
            f"{error}); save tensors, numbers and text"
        )
        return _pickled(Outcome(failure=failed))


def load_outcome(data: bytes, root: EngineRoot, tracer: Tracer) -> Outcome:
    """Return what was left, with places of the model here and the user's lines in the failure."""
    outcome: Outcome = _unpickled(data, root, tracer)
    if outcome.failure is not None:
        outcome.failure.__traceback__ = _rebuilt(outcome.frames)
    return outcome


def _shippable(failure: BaseException) -> BaseException:
    """Return an exception that can be pickled, and that says the same."""
    failure = failure.with_traceback(None)
    failure.__cause__ = failure.__context__ = None
    try:
        pickle.loads(_pickled(failure))
    except Exception:
        return InterventionError(f"{type(failure).__name__}: {failure}")
    return failure


def _frames_of(traceback: TracebackType | None) -> list[tuple[str, int, str]]:
    found = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        found.append((code.co_filename, line_of(traceback), code.co_name))
        traceback = traceback.tb_next
    return found


def _rebuilt(frames: Sequence[tuple[str, int, str]]) -> TracebackType | None:
    traceback: TracebackType | None = None
    for frame in reversed(frames):
        one = traceback_at(*frame)
        if one is not None:
            traceback = TracebackType(traceback, one.tb_frame, one.tb_lasti, line_of(one))
    return traceback
