"""`@intervene`: functions that are programs.

    @intervene
    def steer(model, layer: int, direction: torch.Tensor, scale: float = 1.0):
        model.transformer.h[layer].output[:, -1] += scale * direction
        return model.lm_head.output[:, -1]

    with model.trace("Hello"):                       # called in a block
        logits = steer(model, 5, direction).save()

    logits = steer.run(model, "Hello", layer=5, direction=direction)     # run alone

    with model.trace("Hello", interventions=[steer.bind(layer=5, direction=direction)]):
        hidden = model.transformer.h[8].output.save()                    # beside a block

If the user does not call the function, a parameter named `model` receives the model that runs, and
one named `tracer` its tracer. Arguments are checked against the annotations.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import functools
import importlib
import inspect
import linecache
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeAlias, TypeVar, get_type_hints

from nnsight_dsl.runtime.errors import InterventionArgumentError
from nnsight_dsl.runtime.machines.machine import Machine, current_machine
from nnsight_dsl.runtime.tracebacks import raising_at_user
from nnsight_dsl.tracing.saving import INJECTED
from nnsight_dsl.transforms import requests
from nnsight_dsl.transforms.asserts import is_rewritten_by_pytest
from nnsight_dsl.transforms.bytecode.globals import global_names
from nnsight_dsl.transforms.errors import BlockNotFoundError, UnsupportedSyntaxError
from nnsight_dsl.transforms.parsing import one_at_a_time
from nnsight_dsl.transforms.program import Program, Running
from nnsight_dsl.transforms.recipes import parse_recipe
from nnsight_dsl.transforms.relowering import lower_again

if TYPE_CHECKING:
    from nnsight_dsl.studies.plan import Plan

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")

_Definition: TypeAlias = "tuple[ast.FunctionDef, list[str]]"
"""A function's statement, and the lines of the text that contains it."""


class Intervention(Generic[_Params, _Result]):
    """A function whose body is lowered to a program. Made by `@intervene`."""

    def __init__(
        self,
        function: Callable[_Params, _Result],
        bound: Mapping[str, Any] | None = None,
        program: Program | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._bound = dict(bound or {})
        self._signature = inspect.signature(function)
        self._lowered = program
        self._unbound: Intervention[_Params, _Result] = self
        self._has_source = True
        self._definition: _Definition | None = None
        if program is None:
            self._refuse()

    def __call__(self, *args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
        """Run the function's statements as part of the block that calls it.

        Raises:
            InterventionArgumentError: an argument is missing, unknown or of another type.
        """
        arguments = self._arguments({}, *args, **kwargs)
        machine = current_machine()
        if machine is None or not self._has_source or self.program.children:
            return self._function(*arguments.args, **arguments.kwargs)
        names = {**inspect.getclosurevars(self._function).nonlocals, **arguments.arguments}
        result: _Result = _run_in(machine, self.program.start(self.user_globals, names, INJECTED))
        return result

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        bound = ", ".join(f"{name}={value!r}" for name, value in self._bound.items())
        return f"<intervention {self._function.__qualname__}({bound})>"

    @raising_at_user
    def bind(self, **arguments: Any) -> Intervention[..., _Result]:
        """Return the same intervention with some arguments given.

        Args:
            **arguments: values of its parameters, by name.

        Returns:
            An intervention that takes the other parameters only.

        Raises:
            InterventionArgumentError: an argument is unknown or of another type.

        Example:
            >>> ablate_third = ablate.bind(layer=3)
            >>> logits = ablate_third.run(model, "Hello")
        """
        unknown = [name for name in arguments if name not in self._signature.parameters]
        if unknown:
            raise InterventionArgumentError(
                f"{self._function.__name__} has no parameter {unknown[0]!r}; it has "
                f"{', '.join(map(repr, self._signature.parameters))}"
            )
        self._check(arguments)
        # shares the function's program and signature
        other: Intervention[..., _Result] = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _bound={**self._bound, **arguments})
        return other

    @raising_at_user
    def run(self, model: Any, *inputs: Any, generate: bool = False, **options: Any) -> Any:
        """Run a model with this intervention alone.

        Args:
            model: a wrapped model.
            *inputs: the input of `model.trace`.
            generate: call `model.generate` instead.
            **options: arguments of the intervention, by name; others go to the trace.

        Returns:
            The return value of the function.

        Raises:
            InterventionArgumentError: an argument is missing, unknown or of another type.

        Example:
            >>> logits = ablate.run(model, "Hello", layer=3)
        """
        own = self._taken(options)
        open_trace = model.generate if generate else model.trace
        tracer = open_trace(*inputs, **options)
        return tracer._run_alone(self.bind(**own))

    @raising_at_user
    def plan(self, model: Any, *inputs: Any, **options: Any) -> Plan:
        """Plan a `run` with the same arguments: its reads and saves, found on fake tensors.

        Args:
            model: the wrapper to plan for.
            *inputs: the input, as for `run`.
            **options: the intervention's own parameters and those of the trace, as for `run`.

        Returns:
            The plan: each value that would be served, with its shape and dtype, and each saved one.

        Example:
            >>> print(ablate.plan(model, "Hello", layer=3))
        """
        own = self._taken(options)
        tracer = model.plan(*inputs, **options)
        found: Plan = tracer._run_alone(self.bind(**own))
        return found

    def _taken(self, options: dict[str, Any]) -> dict[str, Any]:
        """Pop the arguments of the function from the options of a run."""
        names = set(self._signature.parameters) - {"model", "tracer"}
        return {name: options.pop(name) for name in list(options) if name in names}

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the function, including bound ones."""
        return self._signature.parameters

    @property
    def bound(self) -> Mapping[str, Any]:
        """The arguments that `bind` has given."""
        return self._bound

    @property
    def program(self) -> Program:
        """The program that the function's body is lowered to.

        Raises:
            BlockNotFoundError: the function has no source text.
            UnsupportedSyntaxError: it contains a construct that cannot be lowered.
        """
        unbound = self._unbound
        if unbound._lowered is None:
            # found when the function was defined: its file may have been edited since
            if unbound._definition is None:
                raise _without_text(self._function)
            unbound._lowered = _lowered(self._function, unbound._definition)
        return unbound._lowered

    def explain(self) -> str:
        """Show the states of the program.

        Returns:
            A table with one row for each access, in plain text.
        """
        from nnsight_dsl.studies.explain import explain

        return explain(self.program)

    def names(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the program's names when it is started beside a block.

        Args:
            given: values for the parameters `model` and `tracer`, where the function has them.

        Returns:
            The values, by name.

        Example:
            >>> names = ablate.bind(layer=3).names({"model": model, "tracer": tracer})
        """
        wanted = {
            name: value for name, value in given.items() if name in self._signature.parameters
        }
        arguments = self._arguments(wanted)
        closed = inspect.getclosurevars(self._function).nonlocals
        return {**closed, **arguments.arguments}

    @property
    def user_globals(self) -> dict[str, Any]:
        """Globals of the module that the function is defined in."""
        function: Any = self._function
        found: dict[str, Any] = function.__globals__
        return found

    def _arguments(
        self, given: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> inspect.BoundArguments:
        merged = {**given, **self._bound, **kwargs}
        try:
            arguments = self._signature.bind(*args, **merged)
        except TypeError as error:
            raise InterventionArgumentError(
                f"{self._function.__name__}{self._signature} was called with other arguments: "
                f"{error}; give them by name, or bind() them beforehand"
            ) from None
        arguments.apply_defaults()
        self._check({name: arguments.arguments[name] for name in arguments.arguments})
        return arguments

    def _check(self, arguments: Mapping[str, Any]) -> None:
        from typeguard import TypeCheckError, check_type

        hints = _hints(self._function)
        for name, value in arguments.items():
            kind = self._signature.parameters[name].kind
            if name not in hints or kind in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD):
                continue
            try:
                check_type(value, hints[name])
            except TypeCheckError as error:
                # for a container, the message names the item
                reason = str(error).removeprefix(f"{type(value).__name__} ")
                wanted = inspect.formatannotation(self._signature.parameters[name].annotation)
                raise InterventionArgumentError(
                    f"argument {name!r} of {self._function.__name__} is {value!r:.80}, which "
                    f"{reason}; give a value of its annotation, {wanted}"
                ) from None

    def _refuse(self) -> None:
        """Refuse unsupported syntax at the decoration; lowering is deferred to the first use."""
        from nnsight_dsl.transforms.source.unsupported import refuse_unsupported

        if inspect.iscoroutinefunction(self._function) or inspect.isasyncgenfunction(
            self._function
        ):
            code: types.CodeType = self._function.__code__
            raise UnsupportedSyntaxError.at(
                f"'async def {code.co_name}'",
                "write 'def'; await before or after it, collect items before the block, and enter "
                "an 'async with' around the block",
                code.co_filename,
                code.co_firstlineno,
                0,
                linecache.getline(code.co_filename, code.co_firstlineno),
            )
        try:
            self._definition = node, lines = _definition(self._function)
        except BlockNotFoundError:
            self._has_source = False
            return
        file = self._function.__code__.co_filename
        refuse_unsupported(node.body, file, lines, may_return=True)

    def __reduce__(self) -> tuple[Any, ...]:
        function: Any = self._function
        names, around = global_names(function.__code__), self.user_globals
        # made empty and filled later, since it may be among its own globals by calling itself
        state = (
            self.program.recipe,
            function.__code__.co_firstlineno,
            (function.__defaults__, function.__kwdefaults__),
            _without_modules({name: around[name] for name in names if name in around}),
            _without_modules(inspect.getclosurevars(function).nonlocals),
            self._bound,
        )
        return _empty, (), state

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__dict__.update(_rebuilt(*state).__dict__, _unbound=self)


def _run_in(machine: Machine, running: Running) -> Any:
    """Run a program's generator as part of a block, and return its result.

    Its requests are made by the block's machine, whose stack waits for the answers.
    """
    answer: Any = None
    error: BaseException | None = None
    while True:
        request = running.send(answer) if error is None else running.throw(error)
        answer = error = None
        if request[0] == requests.END:
            running.close()
            return request[1] if len(request) > 1 else None
        try:
            answer = machine.request(request)
        except BaseException as raised:
            error = raised


def intervene(function: Callable[_Params, _Result]) -> Intervention[_Params, _Result]:
    """Make a function an intervention: checked, lowered once, and run in blocks or alone.

    Args:
        function: a function whose parameter `model` is the wrapper that it runs on, and `tracer`,
            if it has one, the tracer of its run. Annotated parameters are checked at each call.

    Returns:
        The intervention. Call it in a block, or run it alone with `run(model, prompt, ...)`, which
        returns the function's return value.

    Raises:
        UnsupportedSyntaxError: the function contains a construct that cannot be lowered.

    Example:
        >>> @intervene
        ... def ablate(model, layer: int):
        ...     model.transformer.h[layer].mlp.output[:] = 0
        ...     return model.lm_head.output[:, -1]
        >>> logits = ablate.run(model, "Hello", layer=3)
    """
    return Intervention(function)


_FACTORY = "_nns_factory"
_DEFINED = "_nns_function"


@one_at_a_time
def _lowered(function: Callable[..., Any], definition: _Definition) -> Program:
    from nnsight_dsl.transforms.source.pipeline import lower_function

    node, lines = definition
    return lower_function(node, _around(function, lines))


@one_at_a_time
def _definition(function: Callable[..., Any]) -> _Definition:
    """Find the definition that a function was compiled from, and the lines of its text."""
    from nnsight_dsl.transforms.texts import find_function

    found = find_function(function.__code__, function.__globals__)
    if found is not None and isinstance(found[0], ast.FunctionDef):
        return found[0], list(found[1].lines)
    raise _without_text(function)


def _without_text(function: Callable[..., Any]) -> BlockNotFoundError:
    return BlockNotFoundError(
        f"the text that {function.__qualname__} was compiled from is nowhere to be found, so it "
        "cannot be lowered; define it in a file that is not edited after its import, or register "
        "its text with linecache before it is defined"
    )


def _around(function: Callable[..., Any], lines: list[str]) -> Any:
    from nnsight_dsl.transforms.source.surroundings import Surroundings, future_flags

    code: types.CodeType = function.__code__
    arguments = code.co_argcount + code.co_kwonlyargcount
    arguments += bool(code.co_flags & inspect.CO_VARARGS)
    arguments += bool(code.co_flags & inspect.CO_VARKEYWORDS)
    known = (*code.co_varnames[:arguments], *code.co_freevars)
    return Surroundings(
        code.co_filename,
        lines,
        code.co_name,
        frozenset(known),
        is_function=True,
        flags=future_flags(code),
        rewrites_asserts=is_rewritten_by_pytest(code),
    )


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        # an annotation that cannot be resolved here is not checked
        return {}


def _without_modules(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace modules, which cannot be pickled, by their names."""
    return {
        name: _ModuleName(value.__name__) if isinstance(value, types.ModuleType) else value
        for name, value in values.items()
    }


def _with_modules(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: importlib.import_module(value) if isinstance(value, _ModuleName) else value
        for name, value in values.items()
    }


class _ModuleName(str):
    """The name of a module, in place of the module itself, which cannot be pickled."""

    __slots__ = ()


def _empty() -> Intervention[..., Any]:
    """Return an empty intervention, to be filled by `__setstate__`."""
    return object.__new__(Intervention)


def _rebuilt(
    recipe: str,
    first_line: int,
    defaults: tuple[Any, Any],
    user_globals: Mapping[str, Any],
    closed: Mapping[str, Any],
    bound: Mapping[str, Any],
) -> Intervention[..., Any]:
    """Make an intervention from the recipe of its program and its outside values."""
    program = lower_again(recipe)[0]
    code = _definition_code(recipe, tuple(closed))
    namespace = {
        "__builtins__": builtins,
        "__name__": f"nnsight_dsl_intervention_{program.name}",
        **_with_modules(user_globals),
    }
    own: dict[str, Any] = {}
    exec(code, namespace, own)
    function = own[_FACTORY](**_with_modules(closed))
    function.__defaults__, function.__kwdefaults__ = defaults
    function.__name__ = function.__qualname__ = program.name
    function.__code__ = function.__code__.replace(
        co_firstlineno=first_line, co_name=program.name, co_qualname=program.name
    )
    return Intervention(function, bound, program)


@functools.lru_cache(maxsize=1024)
@one_at_a_time
def _definition_code(recipe: str, closed: tuple[str, ...]) -> types.CodeType:
    """Compile the function of a recipe, inside a factory whose parameters are its free names."""
    definition, _, around = parse_recipe(recipe)
    filename = around.filename
    if not isinstance(definition, ast.FunctionDef):
        raise TypeError(f"an intervention is a function, and a {type(definition).__name__} is none")
    if not linecache.getlines(filename):
        lines = [f"{line}\n" for line in around.lines]
        linecache.cache[filename] = (0, None, lines, filename)
    # the decorators have done their work, and the defaults were evaluated where it was defined
    definition.decorator_list = []
    # by another name: if it calls itself, its own name must find the intervention
    definition.name = _DEFINED
    arguments = definition.args
    arguments.defaults = [ast.Constant(None) for _ in arguments.defaults]
    arguments.kw_defaults = [one and ast.Constant(None) for one in arguments.kw_defaults]
    tree = ast.parse(f"def {_FACTORY}({', '.join(closed)}):\n    return {_DEFINED}")
    factory = tree.body[0]
    if isinstance(factory, ast.FunctionDef):
        factory.body.insert(0, definition)
    # annotations stay text: their names need not be defined here
    flags = __future__.annotations.compiler_flag
    code: types.CodeType = compile(
        ast.fix_missing_locations(tree), filename, "exec", flags, dont_inherit=True
    )
    return code
