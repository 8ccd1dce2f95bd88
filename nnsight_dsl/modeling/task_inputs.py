"""Inputs of a task, as images and sound: what its pipeline's preprocessing makes of them.

    given_to_task("image-classification", pipeline, Input((image,)), architecture, "trace")
    -> Input((), {"pixel_values": tensor})

The pipeline's `preprocess` makes tensors of an input, and its `_forward` passes some of them on to
the model. So `_forward` is called here with a recorder in the place of the model, which keeps the
arguments: they are those of a plain call of the pipeline.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nnsight_dsl.modeling.architecture import Architecture
from nnsight_dsl.modeling.batching import INPUTS
from nnsight_dsl.modeling.inputs import brief
from nnsight_dsl.modeling.options import Options
from nnsight_dsl.runtime.errors import InputError
from nnsight_dsl.tracing.runnable import Input


class _Called(BaseException):
    """Control flow: the pipeline has called the model. Not an error."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = arguments


class _Recorder:
    """Stands for the model in a pipeline's `_forward`."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __call__(self, **arguments: Any) -> Any:
        raise _Called(arguments)

    generate = __call__


def given_to_task(
    task: str, made: Callable[[], Any], one: Input, model: Architecture, function: str
) -> Input:
    """Return an input as arguments of the model.

    Args:
        task: the name of the task.
        made: returns the task's pipeline.
        one: the input, as the user gave it: an image or sound, or a list of them; or arguments of
            the model, which are returned unchanged.
        model: the model to be called.
        function: `"trace"` or `"generate"`.

    Raises:
        InputError: the pipeline cannot preprocess it.
    """
    if not one.args and task == "image-text-to-text" and "text" in one.kwargs:
        rest = {**one.kwargs}
        one = Input((rest.pop("text"),), rest)
    if not one.args or _are_arguments(one.args[0], model):
        return one
    if task == "image-text-to-text" and not _has_images(one.args[0]):
        # the processor takes it like a tokenizer, with `images=` among its options
        return one
    if len(one.args) > 1:
        raise InputError(
            f"{len(one.args)} inputs were given at once; give several of them as a list"
        )
    value = one.args[0]
    ndim = getattr(value, "ndim", 0)
    if isinstance(ndim, int) and ndim > 3:
        raise InputError(
            f"{brief(value)} was given to the task {task!r}, and it may be images or what "
            f"a processor has made of them; give a list of images, or {model.main_input}="
        )
    values = _items_of(value)
    if not values:
        raise InputError("the input is an empty list; give at least one item")
    pipeline = made()
    taken, own = _parted(pipeline, model, one.kwargs, function)
    found = [_arguments_of(pipeline, each, taken) for each in values]
    accepted = model.options_of(function)
    rows = [
        {key: each[key] for key in accepted.kept_of(each) if _is_used(accepted, key)}
        for each in found
    ]
    return Input((), {**_joined(rows), **own})


def is_text_or_tensor(value: Any) -> bool:
    """Return whether an input is a text, ids, a tensor or a mapping, alone or in lists."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (str, int, torch.Tensor)) or hasattr(value, "keys")


def _is_used(options: Options, key: str) -> bool:
    """Return whether a run accepts an argument; a forward may swallow others in `**kwargs`."""
    try:
        options.check((key,))
    except InputError:
        return False
    return True


def _items_of(value: Any) -> list[Any]:
    """Return the items of a list, of which each is a row of the batch; a chat is one item."""
    from transformers.pipelines.base import Chat

    if not isinstance(value, (list, tuple)):
        return [value]
    chats = value if all(isinstance(one, (list, tuple)) for one in value) else [value]
    if all(one and hasattr(one[0], "keys") and "role" in one[0] for one in chats):
        return [Chat(list(one)) for one in chats]
    return list(value)


def _are_arguments(value: Any, model: Architecture) -> bool:
    if not hasattr(value, "keys"):
        return False
    names = {*INPUTS, model.main_input}
    return not names.isdisjoint(value.keys())


def _has_images(value: Any) -> bool:
    """Return whether an input for a processor brings images along: a chat, or a mapping."""
    if isinstance(value, (list, tuple)) and value:
        return _has_images(value[0])
    return hasattr(value, "keys")


def _parted(
    pipeline: Any, model: Architecture, given: Mapping[str, Any], function: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part keywords into parameters of the preprocessing and arguments of the model."""
    options = model.options_of(function)
    own = {key: given[key] for key in given if key in options.forward or key in options.generation}
    rest = {key: given[key] for key in given if key not in own}
    parameters = dict(pipeline._sanitize_parameters(**rest)[0]) if rest else {}
    unknown = rest.keys() - parameters.keys()
    if unknown:
        raise InputError(
            f"{min(unknown)!r} was given, and neither the model nor the preprocessing of the task "
            f"{pipeline.task!r} has such a keyword; leave it out, or give it to model.pipe(...)"
        )
    return {**pipeline._preprocess_params, **parameters}, own


def _arguments_of(pipeline: Any, value: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    # a pipeline takes items out of a mapping that it is given
    value = dict(value) if isinstance(value, Mapping) else value
    try:
        made = pipeline.preprocess(value, **parameters)
        # a pipeline of chunks is a generator
        chunks = list(made) if not hasattr(made, "keys") else [made]
    except (TypeError, ValueError, ImportError, OSError) as error:
        raise InputError(
            f"the task {pipeline.task!r} makes no arguments of {brief(value)} ({error}); give an "
            "input as for model.pipe(...), or the arguments of the model by name"
        ) from error
    if len(chunks) != 1:
        raise InputError(
            f"the task {pipeline.task!r} cuts this input into {len(chunks)} chunks, and a trace "
            "runs one; give a shorter input, or write model.pipe(...)"
        )
    recording = copy.copy(pipeline)
    recording.model = _Recorder(pipeline.model)
    try:
        recording._forward(chunks[0])
    except _Called as called:
        return dict(called.arguments)
    return dict(chunks[0])


def _joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the items of a list into the arguments of one input.

    Raises:
        InputError: they do not have one shape.
    """
    if len(rows) == 1:
        return rows[0]
    joined = {}
    for key, first in rows[0].items():
        values = [one.get(key) for one in rows]
        if isinstance(first, torch.Tensor):
            if len({getattr(one, "shape", None) for one in values}) > 1:
                raise InputError(
                    f"the items of the list have {key} of different shapes, and one batch has one; "
                    "trace them one by one"
                )
            joined[key] = torch.cat(values)
        else:
            joined[key] = first
    return joined
