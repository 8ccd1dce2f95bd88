"""From the inputs of a trace to one call of a pipeline of diffusers.

    with model.generate(num_inference_steps=2) as tracer:
        with tracer.invoke("a cat", seed=0):                    # row 0
            ...
        with tracer.invoke(["a dog", "a fox"], seed=1):         # rows 1 and 2
            ...
    # pipeline(["a cat", "a dog", "a fox"], generator=[...], num_inference_steps=2)

Prompts, and what belongs to one (`negative_prompt`, `latents`, `prompt_embeds`, `image`,
`generator`, ...), have an item for each row, and are joined. Anything else has to be the same for
all invokes. A `seed` gives each image a generator: `seed`, `seed + 1`, ... for those of one input,
so that an image is the same in a batch as alone. Generators are the CPU's, whose numbers are the
same for every device.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from nnsight_dsl.modeling.inputs import blaming
from nnsight_dsl.modeling.keywords import words_of
from nnsight_dsl.modeling.pipelines import parameters_of
from nnsight_dsl.runtime.errors import BatchingError, InputError
from nnsight_dsl.tracing.runnable import Batch, Input

_OF_ROWS = re.compile(
    r"(negative_)?(prompt|pooled_prompt|pooled_projections|text)(_\d)?"
    r"((_embeds|_attention_mask|_mask)(_\d)?)?"
    r"|(image_|noise_)?latents|image|mask_image|control_image|class_labels|batch_size|generator"
)
"""Parameters with an item for each row."""

_COUNTING = ("prompt", "prompt_embeds", "class_labels", "batch_size", "image", "latents")
"""Those that say how many rows there are, the first that is given."""

IMAGES = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
"""Parameters that say how many results there are for each row."""


def is_of_rows(key: str) -> bool:
    """Return whether a parameter has an item for each row."""
    return _OF_ROWS.fullmatch(key) is not None


def images_of(kwargs: Mapping[str, Any]) -> int:
    """Return how many results there are for each row."""
    return max([1, *(int(kwargs[key]) for key in IMAGES if isinstance(kwargs.get(key), int))])


def merge(pipeline_class: Any, inputs: Sequence[Input], options: Mapping[str, Any]) -> Batch:
    """Merge the inputs of all invokes into the arguments of one call.

    Args:
        pipeline_class: the class of the pipeline.
        inputs: for each invoke, the input that the user gave.
        options: keywords that were given for all of them.

    Raises:
        BatchingError: the inputs do not fit into one call.
        InputError: the pipeline has no such keyword, or an input has no rows.
    """
    parameters = parameters_of(pipeline_class)
    known = frozenset({*parameters, "seed"})
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        # those that it takes out of its `**kwargs`
        known |= words_of(pipeline_class.__call__)
    _check(known, options)
    given = []
    for number, one in enumerate(inputs):
        with blaming(number):
            given.append(_named(parameters, one))
            _check(known, given[-1])
    if len(given) == 1:
        kwargs = {**options, **given[0]}
        if "seed" in kwargs and "seed" not in parameters:
            seed = kwargs.pop("seed")
            if kwargs.get("generator") is None and seed is not None:
                made = seeded(seed, (_count(kwargs) or 1) * images_of(kwargs))
                kwargs["generator"] = made[0] if len(made) == 1 else made
        return Batch((), kwargs, (1,))
    counts = []
    for number, kwargs in enumerate(given):
        with blaming(number):
            count = _count(kwargs)
            if count is None:
                raise InputError(
                    f"this input has no prompt: of {', '.join(map(repr, _COUNTING))} it has none; "
                    "give one, or give the keyword to the trace if it is for all invokes"
                )
            counts.append(count)
    return Batch((), _joined(given, counts, options), tuple(counts))


def seeded(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """Return a generator for each of several images: `seed`, `seed + 1`, ..."""
    seeds = [seed + number for number in range(count)] if isinstance(seed, int) else [*seed]
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds were given for {count} images; give one for each")
    return [torch.Generator().manual_seed(one) for one in seeds]


def _named(parameters: Mapping[str, Any], given: Input) -> dict[str, Any]:
    """Return the arguments of an input by name."""
    if len(given.args) > len(parameters):
        raise InputError(
            f"{len(given.args)} arguments were given by position, and the pipeline has "
            f"{len(parameters)}; give them by name"
        )
    named = dict(zip(parameters, given.args, strict=False))
    twice = min((key for key in named if key in given.kwargs), default=None)
    if twice is not None:
        raise InputError(f"{twice!r} was given by position and by name; give it once")
    return {**named, **given.kwargs}


def _check(known: Collection[str], given: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.6)
            advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "leave it out"
            raise InputError(f"{key!r} was given, and the pipeline has no such keyword; {advice}")


def _count(given: Mapping[str, Any]) -> int | None:
    """Return the rows of an input, None if nothing says how many there are."""
    for key in _COUNTING:
        value = given.get(key)
        if value is None:
            continue
        if key == "batch_size":
            return int(value)
        if isinstance(value, torch.Tensor):
            return int(value.shape[0]) if value.ndim > 3 or key != "image" else 1
        return len(value) if isinstance(value, (list, tuple)) else 1
    return None


def _joined(
    given: Sequence[Mapping[str, Any]], counts: Sequence[int], options: Mapping[str, Any]
) -> dict[str, Any]:
    images = images_of({**options, **given[0]})
    # pipelines take one text for one prompt, and a list of them for a list
    kwargs = {
        key: [value] * sum(counts) if isinstance(value, str) and is_of_rows(key) else value
        for key, value in options.items()
    }
    for key in dict.fromkeys(key for one in given for key in one):
        if key in ("seed", "generator"):
            continue
        if key == "batch_size":
            kwargs[key] = sum(counts)
        elif is_of_rows(key):
            parts = [
                _rows(key, one, count, number) for number, (one, count) in _each(given, counts)
            ]
            is_tensors = all(isinstance(part, torch.Tensor) for part in parts)
            kwargs[key] = (
                torch.cat(parts) if is_tensors else [row for part in parts for row in part]
            )
        else:
            kwargs[key] = _of_all(key, given)
    generators = _generators(given, counts, options, images)
    kwargs.pop("seed", None)
    if generators is not None:
        kwargs["generator"] = generators
    return kwargs


def _each(given: Sequence[Any], counts: Sequence[int]) -> Any:
    return enumerate(zip(given, counts, strict=True))


def _rows(key: str, one: Mapping[str, Any], count: int, number: int) -> Any:
    """Return an argument of an input with an item for each of its rows."""
    value = one.get(key)
    if value is None:
        prompt = re.fullmatch(r"prompt_\d", key)
        if prompt is not None and "prompt" in one:
            # as the pipeline itself does
            value = one["prompt"]
        elif re.fullmatch(r"negative_prompt(_\d)?", key):
            value = ""
        else:
            raise BatchingError(
                f"{key!r} is given in some invokes and not in others, and one call has it for all "
                "rows or for none; give it in each, or trace them one by one"
            )
    if isinstance(value, torch.Tensor):
        if value.shape[0] == count:
            return value
    elif isinstance(value, (list, tuple)):
        if len(value) == count:
            return [*value]
    else:
        return [value] * count
    with blaming(number):
        raise InputError(
            f"{key} has {len(value)} items, and the input has {count} rows; give one for each row"
        )


def _of_all(key: str, given: Sequence[Mapping[str, Any]]) -> Any:
    """Return an argument that is the same in all inputs."""
    first = given[0].get(key)
    for one in given:
        if key not in one or (one[key] is not first and not _is_same(one[key], first)):
            raise BatchingError(
                f"{key!r} is not the same in all invokes, and a pipeline has it once for all rows; "
                "give it to the trace, or trace them one by one"
            )
    return first


def _is_same(one: Any, other: Any) -> bool:
    try:
        return type(one) is type(other) and bool(one == other)
    except (RuntimeError, ValueError):
        # several truth values, as of tensors
        return False


def _generators(
    given: Sequence[Mapping[str, Any]],
    counts: Sequence[int],
    options: Mapping[str, Any],
    images: int,
) -> list[torch.Generator] | None:
    """Return a generator for each image; None if no input brings one, or all share the option's."""
    if not any(one.get(key) is not None for one in given for key in ("seed", "generator")):
        if options.get("seed") is not None and options.get("generator") is None:
            return seeded(options["seed"], sum(counts) * images)
        return None
    found: list[torch.Generator] = []
    for number, (one, count) in _each(given, counts):
        own = one.get("generator")
        with blaming(number):
            if own is None and one.get("seed") is not None:
                found.extend(seeded(one["seed"], count * images))
            elif isinstance(own, (list, tuple)):
                if len(own) != count * images:
                    raise InputError(
                        f"{len(own)} generators were given for {count * images} images; give one "
                        "for each"
                    )
                found.extend(own)
            else:
                found.extend([own or torch.default_generator] * (count * images))
    return found
