"""`DiffusionModel`: the wrapper of pipelines of diffusers.

    model = DiffusionModel("stable-diffusion-v1-5/stable-diffusion-v1-5", device="cuda")
    with model.generate("a cat", num_inference_steps=20, seed=0) as tracer:
        for step in tracer.iter[5:]:
            model.unet.mid_block.output[:] = 0          # of rows without and with the prompt
        images = tracer.result.images.save()

The modules of the pipeline are envoys: `model.unet` or `model.transformer`, `model.vae`,
`model.text_encoder`. A run is a call of the whole pipeline, and a step is a call of the denoiser.
A module beside the denoiser, as a text encoder or the decoder of the images, has visits of its
own: an access means its first call, in whichever step that is.

The prompts of several invokes are one batch (`pipeline_inputs.py`). Classifier-free guidance runs
the denoiser on the batch twice in one call, and an invoke sees its rows of both, in the pipeline's
own order (`nnsight_dsl/runtime/values/rows.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from nnsight_dsl.blocks.callers import opens_block
from nnsight_dsl.envoys.envoy import Envoy
from nnsight_dsl.modeling import pipelines
from nnsight_dsl.modeling.base import NNsight
from nnsight_dsl.modeling.pipeline_inputs import images_of, is_of_rows, merge
from nnsight_dsl.runtime.errors import InputError
from nnsight_dsl.runtime.turns import register_modules
from nnsight_dsl.tracing.runnable import Batch, Input


class DiffusionModel(NNsight):
    """A pipeline of diffusers, with its modules as envoys.

    From a name or path the modules are built without weights (on the meta device), and the
    pipeline is loaded at its first run.

    Args:
        pipeline: a repository name, a path, or a pipeline that is already loaded.
        automodel: class of diffusers to load with, or its name, as `"AutoPipelineForText2Image"`;
            by default `DiffusionPipeline`, which finds the class.
        revision: branch, tag or commit of the repository.
        dispatch: load the pipeline at once.
        device: where a pipeline that is loaded here is put.
        dtype: precision of the weights, or its name; `torch_dtype` is the same.
        progress_bar: False to show no progress; by default as the pipeline does.
        rename: aliases of modules, see `NNsight`.
        envoys: classes of envoys, see `NNsight`.
        **kwargs: passed on to `from_pretrained`, as `device_map` and components.

    Raises:
        InputError: it is no pipeline.
        ImportError: diffusers is not installed.

    Example:
        >>> model = DiffusionModel("stable-diffusion-v1-5/stable-diffusion-v1-5")
        >>> with model.generate("a cat", num_inference_steps=20, seed=0) as tracer:
        ...     for step in tracer.iter[:]:
        ...         noise = model.unet.output[0].save()    # [2, 4, 64, 64]
        ...     image = tracer.result.images[0].save()
    """

    _own = NNsight._own | frozenset(
        {"repo_id", "revision", "_class", "_device", "_load_options", "_shows_progress", "_source"}
    )

    _makes_batches = True
    _has_parts_beside = True
    _has_sequences = True

    repo_id: str | None
    revision: str | None

    def __init__(
        self,
        pipeline: Any,
        *,
        automodel: Any = None,
        revision: str | None = None,
        dispatch: bool = False,
        device: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        progress_bar: bool | None = None,
        rename: Mapping[str, str | Sequence[str]] | None = None,
        envoys: Mapping[Any, type[Envoy]] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(pipeline, DiffusionModel):
            pipeline._prepare()
            pipeline = pipeline.pipeline
        name = str(pipeline) if isinstance(pipeline, (str, os.PathLike)) else None
        kind = pipelines.class_of(automodel)
        if revision is not None:
            kwargs["revision"] = revision
        precision = torch_dtype if dtype is None else dtype
        if precision is not None:
            is_name = isinstance(precision, str) and precision != "auto"
            kwargs["torch_dtype"] = getattr(torch, precision) if is_name else precision
        if name is not None:
            components = pipelines.build(name, kwargs)
        elif isinstance(getattr(pipeline, "components", None), Mapping) and callable(pipeline):
            if kwargs or device is not None:
                raise InputError(
                    f"{min([*kwargs, 'device'])!r} is an option of loading, and the pipeline is "
                    "loaded; give it to the pipeline's from_pretrained"
                )
            components = pipelines.Components(pipeline)
        else:
            raise InputError(
                f"{type(pipeline).__name__} is no pipeline of diffusers; give a pipeline, or the "
                "name or path of one, and a single module to NNsight(module)"
            )
        super().__init__(components, rename=rename, envoys=envoys)
        self._source = name
        self._class = kind
        self._device = device
        self._load_options = kwargs
        self._shows_progress = progress_bar
        self.repo_id = name
        self.revision = revision
        if name is None:
            self._set_progress()
        elif dispatch:
            self.dispatch()

    @property
    def dispatched(self) -> bool:
        """True once the pipeline is loaded."""
        origin = self._origin
        return self._source is None if origin is None else bool(origin.dispatched)

    @property
    def pipeline(self) -> Any:
        """The pipeline of diffusers; loaded, if it is not yet."""
        self._prepare()
        return self._module.pipeline

    def dispatch(self) -> None:
        """Load the pipeline now, if it is not loaded yet."""
        source = self._source
        if source is None:
            return
        pipeline = pipelines.load(self._class, source, self._load_options, self._device)
        components = pipelines.Components(pipeline)
        self._rebind(components)
        self._family = register_modules(components)
        self._set_progress()
        # last, so that an interrupted load is repeated
        self._source = None

    def _set_progress(self) -> None:
        if self._shows_progress is not None:
            self._module.pipeline.set_progress_bar_config(disable=not self._shows_progress)

    def trace(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Run the pipeline with the block below; for one step, if nothing says how many.

        Args:
            *args: the prompt, or several; leave it out and give one to each invoke.
            trace: False runs the pipeline without a block and returns its output.
            **kwargs: arguments of the pipeline's call, as `num_inference_steps`, and `seed`.

        Returns:
            The tracer, to be used in a `with` statement.

        Raises:
            InputError: `stop`, `scan`, `validate` or `plan` is given, or when the block is left:
                the pipeline has no such keyword.

        Example:
            >>> with model.trace("a cat", seed=0):
            ...     hidden = model.unet.mid_block.output.save()
        """
        return self._run("trace", args, self._with_steps(kwargs), trace)

    def generate(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Run the pipeline with the block below, for its own number of steps.

        Args:
            *args: the prompt, or several; leave it out and give one to each invoke.
            trace: False runs the pipeline without a block and returns its output.
            **kwargs: arguments of the pipeline's call, as `num_inference_steps`, and `seed`, which
                gives each image a generator.

        Returns:
            The tracer, to be used in a `with` statement.

        Raises:
            InputError: as for `trace`.

        Example:
            >>> with model.generate("a cat", num_inference_steps=20, seed=0) as tracer:
            ...     for step in tracer.iter[:5]:
            ...         model.unet.mid_block.output[:] = 0
            ...     image = tracer.result.images[0].save()
        """
        return self._run("generate", args, kwargs, trace)

    def pipe(self, *args: Any, trace: bool = True, **kwargs: Any) -> Any:
        """Run the pipeline, and return its output; in a `with` statement as `generate`.

        Args:
            *args: the prompt, or several.
            trace: False runs the pipeline without a block, also in a `with` statement.
            **kwargs: as for `generate`.

        Returns:
            The output of the pipeline; in a `with` statement the tracer.

        Raises:
            InputError: as for `trace`.

        Example:
            >>> image = model.pipe("a cat", num_inference_steps=20, seed=0).images[0]
        """
        return self._run("generate", args, kwargs, trace and opens_block())

    def scan(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a pipeline looks at values, and fake tensors have none.

        Args:
            *args: input of the model.
            **kwargs: further arguments.

        Raises:
            InputError: always; it says how to scan a component.
        """
        raise InputError(
            "a pipeline of diffusers looks at values, which the fake tensors of a scan do not "
            f"have; scan a component, NNsight(model.{self._denoiser or 'vae'}).scan(...)"
        )

    plan = scan

    def _run(
        self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any], trace: bool
    ) -> Any:
        for word in ("plan", "scan", "stop", "validate"):
            if kwargs.pop(word, None):
                raise InputError(
                    f"{word!r} was given, and runs a model on fake tensors first; a pipeline looks "
                    f"at values: give it to a trace of a component, "
                    f"NNsight(model.{self._denoiser or 'vae'}).trace(...)"
                )
        return self._opened(function, Input(args, {}), kwargs, trace)

    def _with_steps(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a run, for one step if nothing says how many."""
        steps = {"num_inference_steps", "timesteps", "sigmas"}
        if "num_inference_steps" in self._accepted() and steps.isdisjoint(options):
            return {"num_inference_steps": 1, **options}
        return dict(options)

    @property
    def _denoiser(self) -> str | None:
        return pipelines.denoiser_of(self._module)

    def _accepted(self) -> Collection[str]:
        return self._call_parameters()

    def _call_parameters(self) -> Mapping[str, Any]:
        # only the class that loading finds has them all
        return pipelines.parameters_of(type(self.pipeline))

    def _prepare(self) -> None:
        super()._prepare()
        if self._origin is None:
            self.dispatch()
        self._module.follow()

    def _function(self, name: str) -> Callable[..., Any]:
        call: Callable[..., Any] = self._module
        return call

    def _takes_steps(self, function: str) -> bool:
        return self._denoiser is not None

    def _stepping(self) -> Envoy:
        return self._envoy_at(self._denoiser or "")

    def _is_input(self, key: str, options: Mapping[str, Any]) -> bool:
        return is_of_rows(key) and key != "generator" and not key.startswith("negative_")

    def _has_prompt(self, given: Input) -> bool:
        return bool(given.args or given.kwargs)

    def _runs_empty(self, options: Mapping[str, Any]) -> bool:
        # one without prompts begins with the number of images
        return next(iter(self._call_parameters()), None) == "batch_size"

    def _row_factors(self, function: str, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        count = images_of(kwargs)
        return count, count

    def _row_repeats(self, function: str, kwargs: Mapping[str, Any]) -> int:
        parameters = self._call_parameters()

        def value_of(name: str) -> Any:
            parameter = parameters.get(name)
            return kwargs.get(name, None if parameter is None else parameter.default)

        scale = value_of("guidance_scale")
        if not isinstance(scale, (int, float)) or scale <= 1:
            guided = 1
        else:
            guided = 2
        # a second kind of guidance adds a third repeat
        others = ("image_guidance_scale", "pag_scale")
        return guided + any(isinstance(value_of(name), (int, float)) for name in others)

    def _merged(self, inputs: Sequence[Input], function: str, options: Mapping[str, Any]) -> Batch:
        return merge(type(self._module.pipeline), inputs, options)
