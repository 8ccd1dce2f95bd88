"""`NNsight`: the wrapper of any PyTorch module.

The wrapper is the root envoy of the module, and opens the blocks that run it:

    model = NNsight(torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(10, 2)))
    with model.trace(torch.rand(1, 5)):
        hidden = model[0].output.save()

It sorts the keywords of `trace` (options of the trace, inputs, arguments of the forward), holds the
edits, and caches the guards of programs. The run itself is in `nnsight_dsl/tracing`.

Kinds of model (`LanguageModel`, `VLLM`) override the methods at the end of the class: how inputs
make one call, which function is called, where a step of a generation begins. Inputs of any module
have no known batch dimension, so two invokes with an input are an error here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from nnsight_dsl.envoys.classes import EnvoyClasses
from nnsight_dsl.envoys.copying import restore, state_of
from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.envoys.renaming import Renaming
from nnsight_dsl.modeling.tensor_parallel import splits_of
from nnsight_dsl.runtime.errors import InputError
from nnsight_dsl.runtime.machines.machine import current_machine
from nnsight_dsl.runtime.tapping.sharded import Split
from nnsight_dsl.runtime.turns import register_modules
from nnsight_dsl.studies.scan_tracers import PlanTracer, ScanTracer
from nnsight_dsl.tracing.backends import Backend, HandedOver
from nnsight_dsl.tracing.backward import install as install_backward
from nnsight_dsl.tracing.edit import Edit
from nnsight_dsl.tracing.fast_path import run_alone
from nnsight_dsl.tracing.runnable import Input, Runnable
from nnsight_dsl.tracing.session import Session
from nnsight_dsl.tracing.tracer import Tracer
from nnsight_dsl.transforms.held_texts import hold_texts

OWN_OPTIONS = (
    "backend", "blocking", "fn", "interventions", "log", "plan", "remote", "scan", "stop",
    "tracer_cls", "validate",
)  # fmt: skip
"""Keywords of `trace` that are options of the trace, not arguments of the model."""

_REMOTE_OPTIONS = {"remote": False, "backend": None, "blocking": True}
"""Options of remote execution with their defaults, which wrappers of programs pass on."""


class NNsight(Runnable):
    """A model whose inside can be read and changed while it runs.

    The module itself is not touched: outside of a run it carries nothing of this package.

    Args:
        module: any `torch.nn.Module`, or what one is wrapped in here.
        envoys: classes of one's own for the envoys of some modules, by class of modules or by
            path: `{"layers.*.attn": Attention}`; see `nnsight_dsl.envoys.classes`.
        rename: aliases of modules, as `{"transformer.h": "layers", "mlp": ["feedforward"]}`: a
            key is a path wherever it leads to a module, one with a leading dot from the root only.
            `*` in it is any name. A class is a key, too, for the only child of that class.

    Example:
        >>> model = NNsight(torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(10, 2)))
        >>> with model.trace(torch.rand(1, 5)):
        ...     hidden = model[0].output.save()
        >>> hidden.shape
        torch.Size([1, 10])
    """

    _own = frozenset({"_aliases", "_classes", "_edits", "_family", "_fits", "_linted", "_origin"})

    # what opens a block of each kind; `compat` has its own for programs of another dialect
    _trace_class: type[Tracer] = Tracer
    _scan_class: type[ScanTracer] = ScanTracer
    _edit_class: type[Edit] = Edit
    _part_class: type[Part]

    _dot_is_root = True
    """Whether a leading dot of a key of `rename=` means the root."""

    def __init__(
        self,
        module: nn.Module | Envoy,
        *,
        rename: Mapping[Any, str | Sequence[str]] | None = None,
        envoys: Mapping[Any, type[Envoy]] | None = None,
    ) -> None:
        module = module_of(module)
        self._put_at(module)
        install_backward()
        self._edits = []
        self._fits = {}
        self._linted = set()
        # the wrapper that this one is a copy of; only `_copy` sets it
        self._origin = None
        hold_texts()
        self._aliases = Renaming(rename or {}, module, type(self), dot_is_root=self._dot_is_root)
        if envoys:
            self._classes = EnvoyClasses(envoys, self._envoy_class)
        self._family = register_modules(module)

    def trace(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Run the model once, with the block below.

        Args:
            *args: input of the model; leave it out and give one to each `tracer.invoke(...)`.
            trace: False runs the model without a block and returns its output.
            **kwargs: further arguments of the model's forward. `stop="auto"` stops the forward
                where the last block ends, if nobody needs what comes after. `plan=True` makes a
                plan on fake tensors first, see `tracer.plan()`. `fn=` is a function, or the name
                of a method, that is run in place of the forward. `backend=` is called with the
                tracer in place of the run, see `nnsight_dsl.tracing.backends`.

        Returns:
            The tracer, to be used in a `with` statement.

        Raises:
            NoInputError: neither the trace nor an invoke in it has an input.

        Example:
            >>> with model.trace("Hello"):
            ...     hidden = model.transformer.h[5].output.save()    # [1, tokens, width]
        """
        if kwargs or not trace:
            return self._opened("trace", Input(args, {}), kwargs, trace)
        tracer = self._trace_class(self, "trace", args, kwargs)
        tracer._short_way = run_alone
        return tracer

    def session(self, **options: Any) -> Session:
        """Open a block of several traces, between which values flow without being saved.

        Args:
            **options: those of remote execution, which is not built, are refused.

        Returns:
            The session, to be used in a `with` statement.

        Raises:
            NotImplementedError: an option of remote execution is given.
            TypeError: there is no such option.

        Example:
            >>> with model.session():
            ...     with model.trace("Hello"):
            ...         hidden = model.transformer.h[5].output
            ...     with model.trace("World"):
            ...         model.transformer.h[5].output[:] = hidden
            ...         logits = model.lm_head.output.save()
        """
        self._refuse_remote(options)
        if options:
            raise TypeError(
                f"model.session() was given {min(options)!r}, which it does not know; give the "
                "arguments of a run to the traces in it"
            )
        return Session(self)

    def scan(self, *args: Any, **kwargs: Any) -> ScanTracer:
        """Run the block below on fake tensors: shapes without values, and without weights.

        All names that the block binds leave it.

        Args:
            *args: input of the model, as for `trace`.
            **kwargs: further arguments of the model's forward.

        Returns:
            The tracer, to be used in a `with` statement.

        Example:
            >>> with model.scan("Hello"):
            ...     width = model.transformer.h[0].output.shape[-1]
        """
        self._refuse_remote(kwargs)
        inputs = {key: kwargs.pop(key) for key in list(kwargs) if self._is_input(key, kwargs)}
        return self._scan_class(self, "trace", Input(args, inputs), kwargs)

    def plan(self, *args: Any, **kwargs: Any) -> PlanTracer:
        """Run the block below on fake tensors, to see its reads and saves before a real run.

        No name leaves the block; `tracer.plan()` returns the plan after it.

        Args:
            *args: input of the model, as for `trace`.
            **kwargs: further arguments of the model's forward.

        Returns:
            The tracer, to be used in a `with` statement.

        Example:
            >>> with model.plan("Hello") as tracer:
            ...     hidden = model.transformer.h[3].output[:, -1].save()
            >>> print(tracer.plan())
        """
        self._refuse_remote(kwargs)
        inputs = {key: kwargs.pop(key) for key in list(kwargs) if self._is_input(key, kwargs)}
        return PlanTracer(self, "trace", Input(args, inputs), kwargs)

    def edit(self, *, inplace: bool = False, **options: Any) -> Edit:
        """Keep the block below, and start it with each run from now on.

        Args:
            inplace: edit this wrapper; otherwise another wrapper of the same module is made, which
                the `as` target is bound to.
            **options: those of remote execution, which is not built, are refused.

        Returns:
            The block's opener, to be used in a `with` statement.

        Raises:
            NotImplementedError: an option of remote execution is given.
            TypeError: there is no such option.

        Example:
            >>> with model.edit() as edited:
            ...     model.transformer.h[1].output[:, -1] = 0
        """
        self._refuse_remote(options)
        if options:
            raise TypeError(
                f"model.edit() was given {min(options)!r}, which it does not know; it knows "
                "'inplace'"
            )
        return self._edit_class(self if inplace else self._copy(), is_inplace=inplace)

    def clear_edits(self) -> None:
        """Take all edits off this wrapper."""
        self._edits.clear()

    def _copy(self) -> NNsight:
        """Copy the wrapper: the same module and family, the same edits at first, empty caches.

        `_origin` of the copy is this wrapper, which loads the weights of both.
        """
        copy: NNsight = type(self).__new__(type(self))
        restore(
            copy, state_of(self), _edits=[*self._edits], _fits={}, _linted=set(),
            _family=self._family, _origin=self,
        )  # fmt: skip
        return copy

    def __copy__(self) -> NNsight:
        return self._copy()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if self._edits:
            raise TypeError(
                f"{type(self).__name__} has edits, which are code and cannot be pickled; pickle it "
                "before they are made, or take them off by clear_edits()"
            )
        return super().__reduce_ex__(protocol)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        family = register_modules(state["_module"])
        restore(self, state, _fits={}, _linted=set(), _family=family)

    def _opened(self, function: str, given: Input, options: dict[str, Any], trace: bool) -> Any:
        if options:
            self._refuse_clash(options)
            backend = options.pop("backend", None)
            fn = self._run_in_place(options, function)
            self._refuse_remote(options)
            for key in list(options):
                if key not in OWN_OPTIONS and self._is_input(key, options):
                    given.kwargs[key] = options.pop(key)
            stop = options.pop("stop", None)
            if stop is not None and (stop != "auto" or function != "trace"):
                raise ValueError(
                    f"{function}(..., stop={stop!r}) is not known; trace(..., stop='auto') stops "
                    "the forward where the last block ends, and tracer.stop() ends a block"
                )
            kind = self._class_of_tracer(options.pop("tracer_cls", None))
            tracer = kind(self, function, given, options)
            tracer._stops = stop is not None
            tracer._fn = fn
            tracer._backend = backend
            if backend is None and kind.execute is not HandedOver.execute:
                tracer._backend = Backend()
            if backend is not None and not (trace and callable(backend)):
                raise TypeError(
                    f"backend={backend!r} is called with the tracer when a block is run; give a "
                    "callable, to a trace that has a block"
                )
        else:
            tracer = self._trace_class(self, function, given, options)
        return tracer if trace else tracer._run_without_block()

    def _run_in_place(self, options: dict[str, Any], function: str) -> Any:
        """Return the function of the option `fn`, which is run in place of the model."""
        fn = options.pop("fn", None)
        if fn is None:
            return None
        if isinstance(fn, str):
            # one that opens a block has the method itself inside
            found = getattr(self, fn)
            opened = getattr(found, "__wrapped__", None)
            fn = found if opened is None else partial(opened, self)
        if function != "trace" or not callable(fn):
            raise TypeError(
                f"{function}(..., fn={fn!r}) is not known; trace(..., fn=) takes a function or the "
                "name of a method, which is run in place of the forward"
            )
        for word in ("scan", "validate", "plan", "stop"):
            if options.get(word):
                raise ValueError(
                    f"{word}={options[word]!r} is about a forward of the model, and fn= is run in "
                    "its place; leave one of them out"
                )
        return fn

    def _class_of_tracer(self, given: Any) -> type[Tracer]:
        """Return the class of the tracer, which is the one given with the option `tracer_cls`."""
        own = self._trace_class
        if given is None or (isinstance(given, type) and issubclass(own, given)):
            return own
        if not (isinstance(given, type) and issubclass(given, Tracer)):
            raise TypeError(
                f"tracer_cls={given!r} is no subclass of the tracer here "
                "(nnsight_dsl.tracing.tracer.Tracer, which is "
                "nnsight.intervention.tracer.InterleavingTracer); derive it from that, or write "
                "backend= for something to be done with the block"
            )
        return given if issubclass(given, own) else type(given.__name__, (given, own), {})

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Call the model: with its edits outside of a block, plainly inside of one."""
        if self._edits and current_machine() is None:
            tracer = self._trace_class(self, "trace", Input((), {}), {})
            return tracer._run_without_block_on(args, kwargs)
        return super().__call__(*args, hook=hook, **kwargs)

    def _refuse_clash(self, options: Mapping[str, Any]) -> None:
        for word in OWN_OPTIONS:
            if word in options and word in self._accepted():
                raise TypeError(
                    f"{word!r} is an option of the trace and an argument of "
                    f"{type(self._module).__name__}.forward, so it is unclear which is meant; give "
                    "the argument by position"
                )

    def _refuse_remote(self, options: dict[str, Any]) -> None:
        """Refuse options of remote execution, unless they ask for nothing.

        An option is left alone if it is an argument of the forward.
        """
        given = {}
        for word, default in _REMOTE_OPTIONS.items():
            if word in options and word not in self._accepted():
                value = options.pop(word)
                if value is not default:
                    given[word] = value
        remote = given.pop("remote", None)
        if remote:
            raise NotImplementedError(
                f"remote execution is not built; leave remote={remote!r} out to run on this machine"
            )
        if given:
            raise NotImplementedError(
                f"{min(given)!r} is an option of remote execution, which is not built; leave it "
                "out: a run on this machine is over when its block is"
            )

    def _accepted(self) -> Collection[str]:
        """Return the names of the arguments of the module's forward."""
        return self._parameters()

    def _part_of(self, envoy: Envoy) -> Part:
        own = envoy.__dict__
        part: Part | None = own.get("_part")
        if part is None:
            part = own["_part"] = self._part_class(envoy)
        return part

    # overridden by the kinds of models

    def _is_input(self, key: str, options: Mapping[str, Any]) -> bool:
        """Return whether a keyword of `trace` is an input, as `input_ids=` is, not an option."""
        return True

    def _splits(self) -> Mapping[int, Split]:
        return splits_of(self._module)

    def _check_use(self, envoy: Envoy, what: str) -> None:
        split = self._splits().get(id(envoy._module))
        if split is not None and what == "a call" and split.is_on_parts:
            raise InputError(
                f"{envoy._path} computes a part in each process of this tensor parallel model, and "
                "a call of it in a block would, too; call the module around it, whose values are "
                "whole"
            )

    def _run_each(
        self, programs: Sequence[Any], prompt: Any, options: Mapping[str, Any]
    ) -> tuple[Any, ...] | None:
        """Run a prompt once with each program of a sweep; None to let the sweep run them."""
        return None


class Part(NNsight):
    """A part of a model, run alone: `model.lm_head.trace(hidden)`.

    Its modules keep the paths that they have in the model, and loading the model loads it. Edits
    of a part are made where the part is run alone, not in runs of the whole model.

    Args:
        place: the envoy of the part.
    """

    _own = NNsight._own | frozenset({"_place"})

    def __init__(self, place: Envoy) -> None:
        super().__init__(place._module)
        self._place = place
        self._path = place._path
        self._aliases = place._renaming

    def _whole(self) -> Envoy:
        return self._place._root

    def _prepare(self) -> None:
        super()._prepare()
        place = self._place
        place._root._prepare()
        module = place._fresh()
        if module is not self._module:
            self._rebind(module)
            self._family = register_modules(module)


NNsight._part_class = Part


def module_of(given: Any) -> nn.Module:
    """Return a module, unwrapped if it is given as an envoy.

    Raises:
        TypeError: the value is neither a module nor an envoy.
    """
    if isinstance(given, Envoy):
        # load the model first: loading replaces the modules
        given._root._prepare()
        given = given._module
    if not isinstance(given, nn.Module):
        raise TypeError(
            f"{given!r} is not a torch.nn.Module; give the module itself, and a model by its name "
            "or path to LanguageModel"
        )
    return given
