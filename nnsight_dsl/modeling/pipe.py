"""Whole pipelines of transformers, run with a block.

    with model.pipe("the [MASK] sat", top_k=1) as tracer:
        model.bert.encoder.layer[3].output[:] = 0
        records = tracer.result.save()

The pipeline is transformers' own, around the wrapped module. It may call the model several times,
for several inputs or chunks: an access means the first call, and `tracer.iter[1]` the second.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nnsight_dsl.modeling import tasks
from nnsight_dsl.runtime.errors import BatchingError, InputError
from nnsight_dsl.tracing.runnable import Batch, Input

_OF_TRACES = ("plan", "scan", "stop", "validate")


class _Wrapper(Protocol):
    task: str | None
    _module: Any


def pipeline_of(model: _Wrapper, known: dict[str, Any]) -> Any:
    """Return the pipeline of a wrapper, made again when its module or a part is another.

    Args:
        model: the wrapper.
        known: its cache.

    Raises:
        InputError: transformers has no task for the module, or a part that the task needs was
            not given with the module.
    """
    module = model._module
    own = vars(model)
    parts = {name: own[name] for name in tasks.PARTS}
    key = (module, model.task, *parts.values())
    kept = known.get("pipeline")
    if kept is None or any(one is not other for one, other in zip(key, kept[0], strict=True)):
        if model.task is None:
            raise InputError(
                f"transformers has no task for {type(module).__name__}, so there is no pipeline; "
                "give task= to TransformersModel, or write model.trace(...) or model.generate(...)"
            )
        task = tasks.find_task(model.task)
        given = _given_of(task, parts)
        is_placed = getattr(module, "hf_device_map", None) is not None
        place = {} if is_placed else {"device": module.device}
        made = task.pipeline(model=module, task=task.name, **given, **place)
        kept = known["pipeline"] = key, made
    found = kept[1]
    if getattr(module, "hf_device_map", None) is None:
        # the user may have moved the module
        found.device = module.device
    return found


def _given_of(task: tasks.Task, parts: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import ProcessorMixin

    given = {name: one for name, one in parts.items() if one is not None}
    if isinstance(given.get("tokenizer"), ProcessorMixin):
        # a processor may be given in the place of a tokenizer
        given.setdefault("processor", given.pop("tokenizer"))
    for name in tasks.PARTS:
        if getattr(task.pipeline, f"_load_{name}") is True and name not in given:
            raise InputError(
                f"the task {task.name!r} preprocesses its inputs by the {name} of a model, and the "
                f"model was given as a module without one; write TransformersModel(module, "
                f"{name}=...), or trace arguments of the model, as input_ids= or pixel_values="
            )
    return given


def generates(pipeline: Any) -> bool:
    """Return whether a pipeline generates from its input, one call of the model for each token."""
    return bool(
        pipeline._pipeline_calls_generate
        and pipeline.model.can_generate()
        and getattr(pipeline, "type", "") not in ("ctc", "ctc_with_lm")
    )


def input_of(model: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Input:
    """Return the input of a pipeline; one that is given by name is taken out of the options.

    Raises:
        InputError: there is more than one, or an option is one of traces only.
    """
    for word in _OF_TRACES:
        if options.pop(word, None):
            raise InputError(
                f"{word!r} was given to pipe, and a pipeline looks at values; give it to "
                "model.trace(...)"
            )
    if len(args) > 1:
        raise InputError(f"{len(args)} inputs were given at once; give several of them as a list")
    if args:
        return Input(args, {})
    call = inspect.signature(type(model.pipeline).__call__)
    names = [one for one in call.parameters if one not in ("self", "args", "kwargs")]
    return Input((), {name: options.pop(name) for name in names if name in options})


def batch_of(inputs: Sequence[Input], options: Mapping[str, Any]) -> Batch:
    """Return the call of a pipeline.

    Raises:
        BatchingError: there are several inputs.
    """
    if len(inputs) > 1:
        raise BatchingError(
            f"{len(inputs)} invokes have an input, and a pipeline returns one list of records; "
            "give model.pipe([...], batch_size=n) the list of inputs, or trace them"
        )
    one = inputs[0]
    return Batch(one.args, {**options, **one.kwargs}, (1,))
