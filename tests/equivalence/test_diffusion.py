"""Pipelines of diffusers under a block compute what they compute under hand-written hooks.

The oracle is the pipeline's own call, with hooks on its modules. Under classifier-free guidance
the denoiser gets [all rows without a prompt, all rows with theirs] in one call, so that row `i` of
`n` prompts is at `i` and at `n + i`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnsight_dsl import DiffusionModel, NNsight, errors
from tests.equivalence.diffusion_models import (
    call_with_hooks,
    seeds,
    transformer_pipeline,
    unet_pipeline,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""Rows of a convolution differ in the last bits between batches of different sizes."""

STEPS = 3
OPTIONS = {"num_inference_steps": STEPS, "output_type": "np"}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return unet_pipeline()


@pytest.fixture
def model(pipeline: Any) -> DiffusionModel:
    return DiffusionModel(pipeline)


@pytest.fixture(scope="module")
def transformer() -> Any:
    return transformer_pipeline()


def _alone(pipeline: Any, prompt: Any, *numbers: int, **options: Any) -> np.ndarray[Any, Any]:
    found = pipeline(prompt, generator=seeds(*numbers), **{**OPTIONS, **options}).images
    return found  # type: ignore[no-any-return]


# reads, edits, steps


def test_each_step_is_a_call_of_the_denoiser(pipeline: Any, model: DiffusionModel) -> None:
    expected: list[Any] = []
    hooks = {pipeline.unet.mid_block: lambda _, output: expected.append(output.clone())}
    plain = call_with_hooks(pipeline, hooks, "the cat", generator=seeds(0), **OPTIONS)

    with model.generate("the cat", seed=0, **OPTIONS) as tracer:
        hidden = [].save()
        for _ in tracer.iter[:]:
            hidden.append(model.unet.mid_block.output)
        images = tracer.result.images.save()

    assert len(hidden) == STEPS and hidden[0].shape[0] == 2
    assert all(torch.equal(one, other) for one, other in zip(hidden, expected, strict=True))
    assert np.array_equal(images, plain.images)


def test_an_edit_in_some_steps(pipeline: Any, model: DiffusionModel) -> None:
    def hook(step: int, output: Any) -> Any:
        return output * 3 if step >= 1 else None

    plain = call_with_hooks(
        pipeline, {pipeline.unet.mid_block: hook}, "the cat", generator=seeds(0), **OPTIONS
    )

    with model.generate("the cat", seed=0, **OPTIONS) as tracer:
        for _ in tracer.iter[1:]:
            model.unet.mid_block.output = model.unet.mid_block.output * 3
        images = tracer.result.images.save()

    assert np.array_equal(images, plain.images)
    assert not np.allclose(images, _alone(pipeline, "the cat", 0))


def test_an_operation_inside_the_denoiser(pipeline: Any, model: DiffusionModel) -> None:
    expected: list[Any] = []
    hooks = {pipeline.unet.conv_out: lambda _, output: expected.append(output.clone())}
    call_with_hooks(pipeline, hooks, "the cat", generator=seeds(0), **OPTIONS)

    with model.generate("the cat", seed=0, **OPTIONS) as tracer:
        for _ in tracer.iter[1]:
            noise = model.unet.source.self_conv_out_0.output.save()

    assert torch.equal(noise, expected[1])


def test_modules_beside_the_denoiser_have_visits_of_their_own(
    pipeline: Any, model: DiffusionModel
) -> None:
    expected: dict[str, list[Any]] = {"text": [], "image": []}
    hooks = {
        pipeline.text_encoder: lambda _, output: expected["text"].append(output[0].clone()),
        pipeline.vae.decoder: lambda _, output: expected["image"].append(output.clone()),
    }
    call_with_hooks(pipeline, hooks, "the cat", generator=seeds(0), **OPTIONS)

    with model.generate("the cat", seed=0, **OPTIONS) as tracer:
        prompt = model.text_encoder.output[0].save()
        for _ in tracer.iter[:STEPS]:
            noise = model.unet.output[0].save()
        image = model.vae.decoder.output.save()
    with model.generate("the cat", seed=0, **OPTIONS):
        first = model.vae.decoder.conv_in.output.save()
    with model.generate("the cat", seed=0, **OPTIONS):
        negative = model.text_encoder.next().output[0].save()

    assert torch.equal(prompt, expected["text"][0])
    assert torch.equal(negative, expected["text"][1])
    assert torch.equal(image, expected["image"][0])
    assert first.shape[0] == 1


def test_the_output_of_the_model_is_that_of_the_pipeline(
    pipeline: Any, model: DiffusionModel
) -> None:
    with model.trace("the cat", seed=0, output_type="np") as tracer:
        output = model.output.images.save()
        result = tracer.result.images.save()

    assert np.array_equal(output, result)
    assert np.array_equal(output, _alone(pipeline, "the cat", 0, num_inference_steps=1))


# several invokes


def test_each_invoke_gets_what_it_gets_alone(pipeline: Any, model: DiffusionModel) -> None:
    with model.generate(**OPTIONS) as tracer:
        with tracer.invoke("the cat", seed=0):
            first = tracer.result.images.save()
        with tracer.invoke(["a dog", "the red bird"], seed=5):
            second = tracer.result.images.save()
        with tracer.invoke():
            both = model.output.images.save()

    assert np.allclose(first, _alone(pipeline, "the cat", 0), atol=1e-4)
    assert np.allclose(second, _alone(pipeline, ["a dog", "the red bird"], 5, 6), atol=1e-4)
    assert np.array_equal(both, np.concatenate([first, second]))


def test_an_invoke_sees_its_rows_of_both_halves(pipeline: Any, model: DiffusionModel) -> None:
    expected: list[Any] = []
    hooks = {pipeline.unet.mid_block: lambda _, output: expected.append(output.clone())}
    prompts = ["the cat", "a dog", "the red bird"]
    call_with_hooks(pipeline, hooks, prompts, generator=seeds(0, 5, 6), **OPTIONS)

    with model.generate(**OPTIONS) as tracer:
        with tracer.invoke("the cat", seed=0):
            for _ in tracer.iter[1]:
                arguments = model.unet.inputs.save()
                first = model.unet.mid_block.output.save()
        with tracer.invoke(prompts[1:], seed=5):
            for _ in tracer.iter[1]:
                second = model.unet.mid_block.output.save()
                again = model.unet.mid_block.output is second

    assert torch.equal(first, expected[1][[0, 3]])
    assert torch.equal(second, expected[1][[1, 2, 4, 5]])
    assert arguments[1]["encoder_hidden_states"].shape[0] == 2
    assert arguments[0][0].shape[0] == 2


@pytest.mark.parametrize("form", ["in place", "method", "replace", "element", "container"])
def test_an_edit_reaches_both_halves(pipeline: Any, model: DiffusionModel, form: str) -> None:
    def hook(step: int, output: Any) -> Any:
        changed = (output[0] if form in ("element", "container") else output).clone()
        changed[[1, 2, 4, 5]] *= 0.5
        return (changed, *output[1:]) if form in ("element", "container") else changed

    module = pipeline.unet if form in ("element", "container") else pipeline.unet.mid_block
    prompts = ["the cat", "a dog", "the red bird"]
    plain = call_with_hooks(
        pipeline, {module: hook}, prompts, generator=seeds(0, 5, 6), **OPTIONS
    ).images

    with model.generate(**OPTIONS) as tracer:
        with tracer.invoke("the cat", seed=0):
            for _ in tracer.iter[:]:
                before = model.unet.mid_block.output.save()
            first = tracer.result.images.save()
        with tracer.invoke(prompts[1:], seed=5):
            for _ in tracer.iter[:]:
                if form == "in place":
                    model.unet.mid_block.output[:] *= 0.5
                elif form == "method":
                    hidden = model.unet.mid_block.output
                    hidden.mul_(0.5)
                elif form == "replace":
                    model.unet.mid_block.output = model.unet.mid_block.output * 0.5
                elif form == "element":
                    noise = model.unet.output[0]
                    model.unet.output = (noise * 0.5,)
                else:
                    model.unet.output[0][:] = model.unet.output[0] * 0.5
            second = tracer.result.images.save()

    assert np.array_equal(np.concatenate([first, second]), plain)


def test_a_later_invoke_sees_the_edit_of_an_earlier_one(model: DiffusionModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke("the cat", seed=0):
            model.unet.mid_block.output[:] = 0
        with tracer.invoke("a dog", seed=1):
            mine = model.unet.mid_block.output.clone().save()
        with tracer.invoke():
            whole = model.unet.mid_block.output.clone().save()

    assert not whole[[0, 2]].any()
    assert torch.equal(whole[[1, 3]], mine) and mine.any()


def test_an_edit_of_a_replaced_value_is_refused(model: DiffusionModel) -> None:
    with pytest.raises(errors.StaleEditError):
        with model.trace() as tracer:
            with tracer.invoke("the cat", seed=0):
                hidden = model.unet.mid_block.output
                model.unet.mid_block.output = hidden * 2
                hidden[:] = 0
            with tracer.invoke("a dog", seed=1):
                model.unet.mid_block.output.sum().save()


def test_skips_of_all_invokes_are_put_in_the_order_of_the_batch(
    pipeline: Any, model: DiffusionModel
) -> None:
    prompts = ["the cat", "a dog", "the red bird"]
    values = {0: 1.0, 3: 2.0, 1: 3.0, 2: 4.0, 4: 5.0, 5: 6.0}

    def hook(step: int, output: Any) -> Any:
        changed = output.clone()
        for row, value in values.items():
            changed[row] = value
        return changed

    expected = call_with_hooks(
        pipeline,
        {pipeline.unet.mid_block: hook},
        prompts,
        generator=seeds(0, 5, 6),
        **{**OPTIONS, "num_inference_steps": 1},
    ).images

    with model.trace(output_type="np") as tracer:
        with tracer.invoke("the cat", seed=0):
            shape = model.unet.mid_block.input.shape
            filled = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
            model.unet.mid_block.skip(filled.expand(shape).clone())
            first = tracer.result.images.save()
        with tracer.invoke(prompts[1:], seed=5):
            shape = model.unet.mid_block.input.shape
            filled = torch.tensor([3.0, 4.0, 5.0, 6.0]).view(4, 1, 1, 1)
            model.unet.mid_block.skip(filled.expand(shape).clone())
            second = tracer.result.images.save()

    assert np.array_equal(np.concatenate([first, second]), expected)


def test_several_images_of_a_prompt(pipeline: Any, model: DiffusionModel) -> None:
    expected: list[Any] = []
    hooks = {pipeline.unet.mid_block: lambda _, output: expected.append(output.clone())}
    options = {**OPTIONS, "num_images_per_prompt": 2}
    plain = call_with_hooks(
        pipeline, hooks, ["the cat", "a dog"], generator=seeds(0, 1, 7, 8), **options
    ).images

    with model.generate(**options) as tracer:
        with tracer.invoke("the cat", seed=0):
            first = model.unet.mid_block.output.save()
            images = tracer.result.images.save()
        with tracer.invoke("a dog", seed=7):
            second = model.unet.mid_block.output.save()
            image = model.vae.decoder.output.save()

    assert torch.equal(first, expected[0][[0, 1, 4, 5]])
    assert torch.equal(second, expected[0][[2, 3, 6, 7]])
    assert np.array_equal(images, plain[:2]) and image.shape[0] == 2


def test_without_guidance_the_batch_is_not_doubled(pipeline: Any, model: DiffusionModel) -> None:
    expected: list[Any] = []
    hooks = {pipeline.unet.mid_block: lambda _, output: expected.append(output.clone())}
    options = {**OPTIONS, "guidance_scale": 1.0}
    call_with_hooks(pipeline, hooks, ["the cat", "a dog"], generator=seeds(0, 1), **options)

    with model.generate(**options) as tracer:
        with tracer.invoke("the cat", seed=0):
            first = model.unet.mid_block.output.save()
        with tracer.invoke("a dog", seed=1):
            second = model.unet.mid_block.output.save()

    assert torch.equal(first, expected[0][:1]) and torch.equal(second, expected[0][1:])


def test_negative_prompts_of_some_invokes(pipeline: Any, model: DiffusionModel) -> None:
    with model.generate(**OPTIONS) as tracer:
        with tracer.invoke("the cat", seed=0):
            first = tracer.result.images.save()
        with tracer.invoke("a dog", negative_prompt="red", seed=1):
            second = tracer.result.images.save()

    assert np.allclose(first, _alone(pipeline, "the cat", 0), atol=1e-4)
    assert np.allclose(second, _alone(pipeline, "a dog", 1, negative_prompt="red"), atol=1e-4)


def test_a_negative_prompt_for_all_invokes(pipeline: Any, model: DiffusionModel) -> None:
    with model.generate(negative_prompt="red", seed=3, **OPTIONS) as tracer:
        with tracer.invoke("the cat"):
            first = tracer.result.images.save()
        with tracer.invoke("a dog"):
            second = tracer.result.images.save()

    for images, prompt, seed in ((first, "the cat", 3), (second, "a dog", 4)):
        alone = _alone(pipeline, prompt, seed, negative_prompt="red")
        assert np.allclose(images, alone, atol=1e-4)


def test_pictures_are_rows_too(model: DiffusionModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(["the cat", "a dog"], seed=0):
            two = tracer.result.images.save()
        with tracer.invoke("the red bird", seed=1):
            one = tracer.result.images.save()

    assert (len(two), len(one)) == (2, 1)
    assert one[0].size == (16, 16)


def test_caches_and_edits(pipeline: Any, model: DiffusionModel) -> None:
    expected: list[Any] = []
    hooks = {pipeline.unet.mid_block: lambda _, output: expected.append(output.clone())}
    call_with_hooks(pipeline, hooks, ["the cat", "a dog"], generator=seeds(0, 1), **OPTIONS)
    with model.generate(**OPTIONS) as tracer:
        with tracer.invoke("the cat", seed=0):
            cache = tracer.cache(modules=[model.unet.mid_block])
        with tracer.invoke("a dog", seed=1):
            pass
    with model.edit() as edited:
        model.unet.mid_block.output = model.unet.mid_block.output * 3
    with edited.generate("the cat", seed=0, **OPTIONS) as tracer:
        images = tracer.result.images.save()
    plain = call_with_hooks(
        pipeline,
        {pipeline.unet.mid_block: lambda _, output: output * 3},
        "the cat",
        generator=seeds(0),
        **OPTIONS,
    ).images

    kept = cache["unet.mid_block"].outputs
    assert len(kept) == STEPS
    assert all(torch.equal(one, whole[[0, 2]]) for one, whole in zip(kept, expected, strict=True))
    assert np.array_equal(images, plain)


# a transformer as denoiser


def test_a_pipeline_with_a_transformer(transformer: Any) -> None:
    def hook(step: int, output: Any) -> Any:
        if step != 1:
            return None
        changed = output.clone()
        # labels come first here, and those without a label after them
        changed[[0, 2]] *= -1
        return changed

    block = transformer.transformer.transformer_blocks[0]
    plain = call_with_hooks(
        transformer, {block: hook}, [3, 4], generator=seeds(0, 1), **OPTIONS
    ).images
    model = DiffusionModel(transformer)

    with model.generate(**OPTIONS) as tracer:
        with tracer.invoke([3], seed=0):
            for _ in tracer.iter[1]:
                model.transformer.transformer_blocks[0].output[:] *= -1
            first = tracer.result.images.save()
        with tracer.invoke(class_labels=[4], seed=1):
            last = model.transformer.transformer_blocks[1].output.save()
            second = tracer.result.images.save()

    assert last.shape[0] == 2
    assert np.array_equal(np.concatenate([first, second]), plain)


# runs without a block, and components alone


def test_runs_without_a_block(pipeline: Any, model: DiffusionModel) -> None:
    plain = _alone(pipeline, "the cat", 0)
    piped = model.pipe("the cat", seed=0, **OPTIONS).images
    assert np.array_equal(piped, plain)
    untraced = model.generate("the cat", trace=False, generator=seeds(0)[0], seed=3, **OPTIONS)
    assert np.array_equal(untraced.images, plain)

    with model.pipe("the cat", seed=0, **OPTIONS) as tracer:
        images = tracer.result.images.save()
    assert np.array_equal(images, plain)


def test_a_component_alone(model: DiffusionModel) -> None:
    unet = NNsight(model.unet)
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 16)
    expected: list[Any] = []
    handle = unet.module.mid_block.register_forward_hook(
        lambda _, args, output: expected.append(output)
    )
    unet.module(sample, 5, encoder_hidden_states=text)
    handle.remove()

    with unet.trace(sample, 5, encoder_hidden_states=text):
        hidden = unet.mid_block.output.save()
        hidden.retain_grad()
        loss = unet.output.sample.sum().save()
    loss.backward()

    assert torch.equal(hidden, expected[0])
    assert hidden.grad is not None


# loading, options, refusals


def test_a_pipeline_by_path_is_loaded_at_its_first_run(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)

    model = DiffusionModel(str(tmp_path), automodel="StableDiffusionPipeline", progress_bar=False)
    assert not model.dispatched
    assert model.unet.conv_in.weight.is_meta and model.text_encoder.device.type == "meta"
    assert {name for name, _ in model.named_children()} == {"vae", "text_encoder", "unet"}
    unet = model.unet
    with model.generate("the cat", seed=0, **OPTIONS) as tracer:
        images = tracer.result.images.save()

    assert model.dispatched and unet is model.unet
    assert np.allclose(images, _alone(pipeline, "the cat", 0), atol=1e-5)
    assert model.pipeline._progress_bar_config == {"disable": True}
    half = DiffusionModel(str(tmp_path), dtype="float16", dispatch=True)
    assert half.unet.conv_in.weight.dtype == torch.float16


def test_attributes_are_the_pipelines(pipeline: Any) -> None:
    model = DiffusionModel(pipeline)
    assert model.scheduler is pipeline.scheduler
    assert model.pipeline is pipeline
    other = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    before = pipeline.scheduler
    try:
        model.scheduler = other
        assert pipeline.scheduler is other
    finally:
        pipeline.scheduler = before


def test_a_component_that_is_replaced_is_followed() -> None:
    pipeline = unet_pipeline()
    model = DiffusionModel(pipeline)
    before = model.unet
    pipeline.unet = unet_pipeline().unet
    with model.trace("the cat", seed=0):
        hidden = model.unet.mid_block.output.save()

    assert hidden.shape[0] == 2
    assert before.module is pipeline.unet


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_inference_step": 2}, "did you mean 'num_inference_steps'"),
        ({"stop": "auto"}, "runs a model on fake tensors"),
        ({"scan": True}, "runs a model on fake tensors"),
    ],
)
def test_options_that_are_refused(model: DiffusionModel, options: Any, text: str) -> None:
    with pytest.raises(errors.InputError, match=text):
        with model.trace("the cat", **options):
            model.unet.mid_block.output.save()


def test_inputs_that_do_not_fit_are_refused(model: DiffusionModel) -> None:
    with pytest.raises(errors.InputError, match="no prompt"):
        with model.generate(**OPTIONS) as tracer:
            with tracer.invoke("the cat"):
                pass
            with tracer.invoke(seed=1):
                pass
    with pytest.raises(errors.BatchingError, match="'height' is not the same"):
        with model.generate(**OPTIONS) as tracer:
            with tracer.invoke("the cat", height=16):
                pass
            with tracer.invoke("a dog", height=32):
                pass
    with pytest.raises(errors.InputError, match="3 items, and the input has 1 rows"):
        with model.generate(**OPTIONS) as tracer:
            with tracer.invoke("the cat"):
                pass
            with tracer.invoke("a dog", negative_prompt=["a", "b", "c"]):
                pass
    with pytest.raises(errors.InputError, match="scan a component"):
        model.scan("the cat")
    with pytest.raises(errors.InputError, match="is no pipeline"):
        DiffusionModel(torch.nn.Linear(2, 2))
