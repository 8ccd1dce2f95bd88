"""The format between client and engine: programs one way, their outcomes the other.

    client                                    engine
    dump_parts(parts, rename)  -- bytes -->   opened(data), then load_parts(data, root, tracer)
    load_outcome(data, ...)    <-- bytes --   dump_outcome(outcome)

A program travels as its recipe (`transforms/recipes.py`): its source text and the facts needed to
lower it again. The engine lowers each text once and caches the result. The values of its free names
travel along, with these exceptions: the model, its modules and operations, the tracer, the logits
and the samples are pickled as references, by name, and resolved to the objects of the other end.

`cloudpickle`, a dependency of vLLM, pickles the functions of the user's module by value, since the
engine may run in a process that cannot import that module. Bytecode is valid for one version of
Python only, so a payload with such a function names its version, and the engine refuses another.

A value that cannot be pickled is an `InterventionError` at the client, with its name. A saved value
that cannot be sent back is one at the engine, in place of the outcome.
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
from nnsight_dsl.transforms.relowering import lower_again

_FORMAT = 3
"""Raised with each change of this format; the engine refuses any other number."""
_PYTHON = sys.version_info[:2]
_MUTABLE = (list, dict, set)


@dataclass(slots=True)
class Part:
    """One program of a request, with the values of its free names.

    Attributes:
        program: the program.
        user_globals: the globals that it reads.
        names: the values of the other names that it takes from around the block.
        is_for_each_step: True if it restarts in each step, as an edit does.
        leaves_all: True if all its names leave the block, saved or not.
        reach: upper bound of its effects on the request.
    """

    program: Program
    user_globals: dict[str, Any]
    names: dict[str, Any]
    is_for_each_step: bool = False
    leaves_all: bool = False
    reach: Reach = ANYTHING


@dataclass(slots=True)
class Outcome:
    """The results of a request's programs.

    Attributes:
        names: the names that leave the block, with their values.
        saved: those of them that may leave the block around it, too.
        returned: the return value of the block, if it is an intervention.
        changed: items added to lists, dicts and sets around the block, by the container's name.
        failure: the exception that ended the programs, None without one.
        frames: file, line and function of each frame of the failure's traceback.
        warnings: text, category, file and line of each warning.
    """

    names: dict[str, Any] = field(default_factory=dict)
    saved: list[str] = field(default_factory=list)
    returned: Any = None
    changed: dict[str, Any] = field(default_factory=dict)
    failure: BaseException | None = None
    frames: list[tuple[str, int, str]] = field(default_factory=list)
    warnings: list[tuple[str, type[Warning], str, int]] = field(default_factory=list)


def _reference_to(value: Any) -> tuple[str, ...] | None:
    """Return a reference to an object that both ends have; None for one that must be pickled.

    The first item is the kind: `("envoy", path)`, `("place", path)`, `("tracer",)`, or
    `("operation", path of the module, name, ...)`. `_here` resolves it at the other end.
    """
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
    """Return the reference to an operation, or to the source of a module or an operation.

    It has the path of the module and the names of the nested operations, from outside to inside;
    that of a source ends in the empty string.
    """
    names: list[str] = [] if isinstance(value, SourceOperation) else [""]
    place: Place | None = value if isinstance(value, SourceOperation) else value._parent
    while isinstance(place, SourceOperation):
        names.append(place._name)
        place = place._parent
    return ("operation", "" if place is None else place._path, *reversed(names))


@cache
def _pickler() -> Any:
    """Return the class of picklers, made once: the import of cloudpickle is put off until then."""
    from cloudpickle import Pickler

    class ReferringPickler(Pickler):
        # per instance: set `to_cpu` before a dump; `has_code` is True after one that met a function
        # pickled by value
        to_cpu = False
        has_code = False

        def reducer_override(self, obj: Any) -> Any:
            # not `persistent_id`, which is called for every number and string, too
            reference = _reference_to(obj)
            if reference is not None:
                return _here, reference
            if type(obj) is torch.Tensor or type(obj) is EngineValue:
                kept = _compact(obj, to_cpu=self.to_cpu)
                if _is_simple(kept):
                    # torch's own reduction takes fifty times as long for a small tensor
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
    """Return a value as bytes, and the version of Python that bytecode in it needs, if any."""
    buffer = io.BytesIO()
    pickler = _pickler()(buffer, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.to_cpu = to_cpu
    pickler.dump(value)
    return buffer.getvalue(), _PYTHON if pickler.has_code else None


def _is_simple(tensor: torch.Tensor) -> bool:
    """Return whether dtype, shape and raw bytes describe a tensor completely."""
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
    """Rebuild a tensor from its raw bytes."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _compact(tensor: torch.Tensor, *, to_cpu: bool) -> torch.Tensor:
    """Return a tensor as a plain one whose storage holds nothing else; a copy where needed.

    A pickled view would bring its whole storage along. An inference tensor is copied, too, since
    autograd could not use it at the other end.
    """
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
"""The model and the tracer that references resolve to; set by `_unpickled` only."""


def _here(kind: str, *rest: str) -> Any:
    """Resolve a reference of `_reference_to` at this end."""
    root, tracer = _ends.get()
    if kind == "envoy":
        return root._envoy_at(rest[0])
    if kind == "operation":
        found: Any = root._envoy_at(rest[0])
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
    """Pickle the programs of a request.

    Args:
        parts: the programs, in the order in which they run.
        rename: the model's aliases, which paths in the programs may use.

    Raises:
        InterventionError: a value that a program takes from around its block cannot be pickled.
    """
    from cloudpickle import register_pickle_by_value, unregister_pickle_by_value

    modules = [sys.modules.get(part.user_globals.get("__name__", "")) for part in parts]
    by_value = {one.__name__: one for one in modules if one is not None}
    # cloudpickle pickles the functions of `__main__` by value in any case
    by_value.pop("__main__", None)
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
        # pickle each value again, by itself, to name the one that fails
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
    """Return the model's aliases, which paths in an opened payload may use."""
    rename: dict[str, Any] = data[1]
    return rename


def opened(data: bytes) -> tuple[Any, ...]:
    """Unpack the outer layer of a payload, which needs no model.

    Returns:
        The versions, the aliases, the recipes, the flags, and the still pickled values of names.

    Raises:
        InterventionError: the payload was made by another version of this package, or has
            functions that were compiled by another version of Python.
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
    """Lower the programs of an opened payload, and resolve references to a model at this end.

    Args:
        data: the result of `opened`.
        root: the envoy that paths start from.
        tracer: the tracer that the blocks' tracer resolves to.

    Raises:
        InterventionError: this version of Python cannot parse the text of a program.
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
    """Collect the globals that a program reads; a name that is not among them is a builtin."""
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
        # it looks names up in the frame around it, and no table lists them: any word may be one
        wanted |= set(re.findall(r"[^\W\d]\w*", program.source))
    return {name: part.names[name] for name in wanted if name in part.names}


def _roots(program: Program) -> set[str]:
    found = {state.root for one in program.all_programs() for state in one.states if state.root}
    if program.plain is not None:
        found |= program.plain.roots
    return found


def sizes_of(names: Mapping[str, Any]) -> dict[str, int]:
    """Return the length of each list, dict and set around a block, to find later additions."""
    return {name: len(value) for name, value in names.items() if type(value) in _MUTABLE}


def changed_in(names: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the additions to containers around a block, by name.

    Those of a list are its new items. A dict or a set is returned whole, since its new items have
    no known position. A container that did not grow is left out.

    Args:
        names: the names around the block.
        sizes: their lengths before the block ran, from `sizes_of`.
    """
    changed: dict[str, Any] = {}
    for name, size in sizes.items():
        value = names[name]
        if len(value) > size:
            changed[name] = value[size:] if isinstance(value, list) else value
    return changed


def add_changes(names: Mapping[str, Any], changed: Mapping[str, Any]) -> None:
    """Repeat at this end the additions that a block made to containers at the other."""
    for name, added in changed.items():
        value = names.get(name)
        if isinstance(value, list):
            value.extend(added)
        elif isinstance(value, (dict, set)):
            value.update(added)


# outcomes


def dump_outcome(outcome: Outcome) -> bytes:
    """Pickle an outcome, with its tensors on the CPU.

    If a value cannot be pickled, the result is an outcome whose failure says so.
    """
    failure = outcome.failure
    if failure is not None:
        outcome.frames = _frames_of(failure.__traceback__)
        outcome.failure = _shippable(failure)
    try:
        return _pickled(outcome, to_cpu=True)
    except BaseException as error:
        # a value's own code may raise anything, SystemExit too
        failed = InterventionError(
            f"what the block has saved cannot be sent from the engine ({type(error).__name__}: "
            f"{error}); save tensors, numbers and text"
        )
        return _pickled(Outcome(failure=failed))


def load_outcome(data: bytes, root: EngineRoot, tracer: Tracer) -> Outcome:
    """Unpickle an outcome; give its failure a traceback with the user's lines."""
    outcome: Outcome = _unpickled(data, root, tracer)
    if outcome.failure is not None:
        outcome.failure.__traceback__ = _rebuilt(outcome.frames)
    return outcome


def _shippable(failure: BaseException) -> BaseException:
    """Return an exception that can be pickled: the given one, or one with the same message.

    It is unpickled as a trial, since many exceptions pickle but fail to unpickle.
    """
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
