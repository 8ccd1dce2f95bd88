"""Tasks of transformers: which class of model and which preprocessors a task takes.

    find_task("ner").name                         # "token-classification"
    task_of_module(BertForMaskedLM(config))       # "fill-mask"

The tables are those of `transformers.pipeline`: `SUPPORTED_TASKS` with the classes of models, and
the flags of each pipeline's class (`_load_tokenizer`, `_load_image_processor`, ...) with the parts
that preprocess its inputs. True means that a part is needed, None that it is loaded if the
repository has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnsight_dsl.runtime.errors import InputError

PARTS = ("tokenizer", "processor", "image_processor", "feature_extractor")
"""What preprocesses inputs, by the name of the wrapper's attribute."""

_AUTO = {
    "tokenizer": "AutoTokenizer",
    "processor": "AutoProcessor",
    "image_processor": "AutoImageProcessor",
    "feature_extractor": "AutoFeatureExtractor",
}

_PREFERRED = (
    "image-text-to-text", "text-generation", "fill-mask", "text-classification",
    "token-classification", "image-classification", "object-detection", "depth-estimation",
    "image-segmentation", "audio-classification", "automatic-speech-recognition",
    "video-classification",
)  # fmt: skip
"""The task of a class of models that several tasks take: the first of these."""

_OF_TEXTS = frozenset(
    "text-generation fill-mask text-classification token-classification feature-extraction".split()
)


@dataclass(frozen=True, slots=True)
class Task:
    """A task of `transformers.pipeline`.

    Attributes:
        name: its name, such as `"fill-mask"`.
        pipeline: the class of its pipeline.
        models: transformers' auto classes of its models, to be tried in this order.
    """

    name: str
    pipeline: Any
    models: tuple[Any, ...]

    def model_class(self, config: Any) -> Any:
        """Return the first auto class that has a model for a configuration.

        Raises:
            InputError: none has one.
        """
        for one in self.models:
            if type(config) in one._model_mapping or one.__name__ in getattr(
                config, "auto_map", {}
            ):
                return one
        raise InputError(
            f"the task {self.name!r} was given, and transformers has no model of type "
            f"{getattr(config, 'model_type', type(config).__name__)!r} for it; give a task that "
            "the checkpoint is for, or automodel= with the class to load"
        )

    def load_parts(
        self, repo: str, given: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Load what preprocesses the inputs.

        Args:
            repo: a repository name or a path.
            given: by name, the parts that the user has given.
            options: options of `from_pretrained`, such as `revision`.

        Returns:
            The parts by name; None for those that the task does not use.
        """
        import transformers

        parts = dict.fromkeys(PARTS)
        for name in PARTS:
            part = given.get(name)
            is_needed = getattr(self.pipeline, f"_load_{name}")
            if is_needed is False or (part is not None and not isinstance(part, str)):
                parts[name] = part
                continue
            try:
                auto = getattr(transformers, _AUTO[name])
                parts[name] = auto.from_pretrained(part or repo, **options)
            except Exception:
                if is_needed or part is not None:
                    raise
        return parts


def takes_texts(name: str) -> bool:
    """Return whether the inputs of a task are texts for the tokenizer, and nothing else."""
    return name in _OF_TEXTS


def find_task(name: str) -> Task:
    """Return a task by its name or another name of it.

    Raises:
        InputError: transformers has no such task.
    """
    from transformers import pipelines

    try:
        known, found, _ = pipelines.check_task(pipelines._resolve_deprecated_task(name))
    except KeyError as error:
        raise InputError(
            f"the task {name!r} was given: {error.args[0]}; give a task that "
            "transformers.pipeline() has"
        ) from None
    return Task(known, found["impl"], tuple(found["pt"]))


def task_of_module(module: Any) -> str | None:
    """Return the name of the task of a model; None for one that no task takes."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return _task_of_class(names, getattr(module, "main_input_name", "input_ids"))


def task_of_config(config: Any) -> str | None:
    """Return the name of the task of a checkpoint, by the class that it was saved from."""
    import transformers

    for name in getattr(config, "architectures", None) or ():
        cls = getattr(transformers, name, None)
        return _task_of_class([name], getattr(cls, "main_input_name", "input_ids"))
    return None


def _task_of_class(names: list[str], main: str) -> str | None:
    from transformers import pipelines

    table: Mapping[str, Any] = pipelines.SUPPORTED_TASKS
    by_input = {"input_ids": "feature-extraction", "pixel_values": "image-feature-extraction"}
    tasks = [*_PREFERRED, *([by_input[main]] if main in by_input else [])]
    for task in tasks:
        for auto in table[task]["pt"] if task in table else ():
            known = auto._model_mapping._model_mapping.values()
            classes = {one for kind in known for one in (kind if type(kind) is tuple else (kind,))}
            if classes.intersection(names):
                return task
    return None
