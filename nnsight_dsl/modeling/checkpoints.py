"""What a checkpoint says about itself: its task, the class of its model, its preprocessors.

task, source = source_of("google-bert/bert-base-uncased", None, None, {})
source                                          # (BertForMaskedLM, the name)
parts_of(source[1], task, {...}, {}, module, {})    # its tokenizer, loaded
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nnsight_dsl.modeling import loading, tasks
from nnsight_dsl.runtime.errors import InputError


def source_of(
    name: str, task: tasks.Task | None, automodel: Any, options: Mapping[str, Any]
) -> tuple[tasks.Task | None, tuple[Any, str]]:
    """Return the task of a checkpoint, and the class to load it with, beside its name.

    Args:
        name: a repository name or a path.
        task: the task, if it was given.
        automodel: the class or its name, if it was given.
        options: options of loading.

    Raises:
        InputError: nothing says which task it is.
    """
    if task is None and automodel is None:
        task = tasks.find_task(_inferred(name, options))
    return task, (_class_of(automodel, task, name, options), name)


def _inferred(name: str, options: Mapping[str, Any]) -> str:
    """Return the task of a checkpoint: by the class it was saved from, or as the Hub has it.

    Raises:
        InputError: neither says it.
    """
    found = tasks.task_of_config(loading.config_of(name, options))
    if found is not None:
        return found
    from transformers import pipelines

    try:
        return str(pipelines.get_task(name))
    except (KeyError, RuntimeError) as error:
        raise InputError(
            f"nothing says which task {name!r} is for ({error}); give task=, as "
            "task='text-generation'"
        ) from None


def _class_of(
    automodel: Any, task: tasks.Task | None, name: str, options: Mapping[str, Any]
) -> Any:
    if automodel is None and task is not None:
        return task.model_class(loading.config_of(name, options))
    if isinstance(automodel, str):
        import transformers

        return getattr(transformers, automodel)
    return automodel


def parts_of(
    name: str,
    task: tasks.Task | None,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    module: nn.Module,
    tokenizer_kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Load what preprocesses the inputs of a model; without a task, a tokenizer."""
    import transformers

    own = {key: options[key] for key in loading.HUB_OPTIONS if key in options}
    parts = dict(given)
    is_loaded = given["tokenizer"] is None
    if is_loaded and (task is None or task.pipeline._load_tokenizer is True):
        # the same repository as ever, but of the tokenizer's options only these
        known = {"trust_remote_code": options.get("trust_remote_code", False), **own}
        text_options = {**known, **tokenizer_kwargs}
        parts["tokenizer"] = transformers.AutoTokenizer.from_pretrained(name, **text_options)
    if task is not None:
        parts = task.load_parts(name, parts, own)
    tokenizer = parts["tokenizer"]
    if is_loaded and tokenizer is not None and (task is None or task.name == "text-generation"):
        loading.pad_left(tokenizer, module)
        tokenizer.padding_side = tokenizer_kwargs.get("padding_side", tokenizer.padding_side)
    return parts
