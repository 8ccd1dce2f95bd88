"""Section 7 of the page on 0.8's surface: `DiffusionModel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnsight_dsl import NNsight
from tests.equivalence.diffusion_models import seeds, unet_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("pipeline")
    unet_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def model(as_08: None, folder: Path) -> Any:
    from nnsight.modeling.diffusion import DiffusionModel

    made = DiffusionModel(str(folder), safety_checker=None, device="cpu", rename={"unet": "net"})
    assert not made.dispatched and made.unet.conv_in.weight.is_meta
    made.dispatch()
    made.pipeline.set_progress_bar_config(disable=True)
    return made


def test_trace_and_generate_run_one_step_where_nothing_says_how_many(model: Any) -> None:
    plain = model.pipeline(
        "the cat", num_inference_steps=1, generator=seeds(0), output_type="np"
    ).images
    with model.trace("the cat", seed=0, output_type="np") as tracer:
        traced = model.output.images.save()
    steps = 0
    with pytest.warns(UserWarning, match="a loop over all steps ended"):
        with model.generate("the cat", seed=0, output_type="np") as tracer:
            for _ in tracer.iter[:]:
                steps += 1
                noise = model.net.output[0].save()
            generated = tracer.result.images.save()

    assert np.array_equal(traced, plain) and np.array_equal(generated, plain)
    assert noise.shape[0] == 2


def test_generate_without_a_block_runs_the_pipeline(model: Any) -> None:
    plain = model.pipeline("the cat", generator=seeds(0), output_type="np").images
    images = model.generate("the cat", seed=0, output_type="np").images

    assert np.array_equal(images, plain)


def test_a_component_is_traced_alone(model: Any) -> None:
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 16)
    unet = NNsight(model.unet)
    with unet.trace(sample, 5, encoder_hidden_states=text):
        noise = unet.output.sample.save()

    assert torch.equal(noise, model.pipeline.unet(sample, 5, encoder_hidden_states=text).sample)


def test_images_of_one_prompt_have_seeds_that_count(model: Any) -> None:
    options = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "np"}
    plain = model.pipeline("the cat", generator=seeds(4, 5), **options).images
    with model.generate("the cat", seed=4, **options) as tracer:
        images = tracer.result.images.save()
    with model.generate("the cat", seed=1, generator=seeds(4, 5), **options) as tracer:
        given = tracer.result.images.save()

    assert np.array_equal(images, plain) and np.array_equal(given, plain)


def test_programs_for_06_have_it_too(as_06: None, folder: Path) -> None:
    from nnsight import DiffusionModel

    model = DiffusionModel(str(folder), progress_bar=False)
    with model.generate("the cat", num_inference_steps=2, seed=0):
        hidden = model.unet.mid_block.output.save()

    assert hidden.shape[0] == 2
