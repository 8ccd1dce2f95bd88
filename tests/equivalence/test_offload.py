"""Weights that accelerate keeps elsewhere: its hooks and our taps on the same modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from nnsight_dsl import LanguageModel, NNsight
from tests import models
from tests.models import (
    GPT2,
    LONG,
    SHORT,
    assert_near,
    assert_same,
    bare,
    encoded,
    hooked,
    new_gpt2,
)

GREEDY = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
PARTS = [
    "transformer.wte",
    "transformer.wpe",
    "transformer.h.0",
    "transformer.h.1",
    "transformer.h.2",
    "transformer.ln_f",
    "lm_head",
]

# of a model that is offloaded as a whole, transformers takes the device for meta
pytestmark = pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids`")


def _on_cpu(folder: Path) -> Any:
    return accelerate.cpu_offload(new_gpt2(), execution_device=torch.device("cpu"))


def _on_disk(folder: Path) -> Any:
    module = new_gpt2()
    accelerate.disk_offload(module, str(folder), execution_device=torch.device("cpu"))
    return module


def _in_part(folder: Path) -> Any:
    places: dict[str, Any] = dict.fromkeys(PARTS, "cpu")
    places["transformer.h.1"] = places["transformer.h.2"] = "disk"
    return accelerate.dispatch_model(new_gpt2(), places, main_device="cpu", offload_dir=str(folder))


@pytest.fixture(params=[_on_cpu, _on_disk, _in_part], ids=lambda new: new.__name__.strip("_"))
def module(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.param(tmp_path)


@pytest.fixture
def model(module: Any) -> LanguageModel:
    return LanguageModel(module, tokenizer=models.tokenizer())


def _state(module: nn.Module) -> Any:
    """Where the weights are, and what stands on the modules."""
    return {
        path: (
            type(part),
            {
                name: dict(value) if isinstance(value, dict) else id(value)
                for name, value in part.__dict__.items()
                if name not in ("_parameters", "_buffers")
            },
            {name: (one.device, one.shape) for name, one in part.named_parameters(recurse=False)},
        )
        for path, part in module.named_modules()
    }


def _reads(model: LanguageModel) -> None:
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()


def _invokes(model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            model.transformer.h[1].output[:] = 0
        with tracer.invoke(LONG):
            logits = model.output.logits.save()


def _skips(model: LanguageModel) -> None:
    with model.trace(LONG):
        model.transformer.h[1].skip(model.transformer.h[0].output)


def _stops(model: LanguageModel) -> None:
    with model.trace(LONG) as tracer:
        hidden = model.transformer.h[1].mlp.c_fc.output
        tracer.stop()


def _raises(model: LanguageModel) -> None:
    with pytest.raises(ZeroDivisionError):
        with model.trace(LONG):
            hidden = model.transformer.h[1].mlp.c_fc.output
            1 / 0


def _scans(model: LanguageModel) -> None:
    with model.scan(LONG):
        shape = model.transformer.h[1].output.shape
    assert shape == (1, 8, 16)


def _generates(model: LanguageModel) -> None:
    with model.generate(LONG, **GREEDY) as tracer:
        for _ in tracer.iter[:]:
            hidden = model.transformer.h[1].output


def _calls(model: LanguageModel) -> None:
    with model.trace(LONG):
        logits = model.lm_head(model.transformer.h[1].output).save()


RUNS = [_reads, _invokes, _skips, _stops, _raises, _scans, _generates, _calls]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__.strip("_"))
def test_weights_and_hooks_are_where_they_were(
    module: Any, model: LanguageModel, run: Callable[[LanguageModel], None]
) -> None:
    # what transformers leaves on a model at its first calls stands before
    model.generate(LONG, **GREEDY, trace=False)
    before = _state(module)
    assert any(parameter.is_meta for parameter in module.parameters())
    run(model)
    assert _state(module) == before
    assert_same(module(**encoded(LONG)).logits, models.logits_of(GPT2, LONG))


def test_values_are_those_of_the_model_with_its_weights(module: Any, model: LanguageModel) -> None:
    paths = ["transformer.wte", "transformer.h.1.attn", "transformer.h.1.mlp.c_fc", "lm_head"]
    with models.recorded(bare(GPT2), paths) as seen:
        expected = bare(GPT2)(**encoded(LONG)).logits
    with model.trace(LONG):
        embedded = model.transformer.wte.output.save()
        attention = model.transformer.h[1].attn.output.save()
        fed = model.transformer.h[1].mlp.c_fc.output.save()
        scores = model.lm_head.output.save()
        logits = model.output.logits.save()
    assert_same([embedded, attention, fed, scores], [seen[path][0] for path in paths])
    assert_same(logits, expected)


def test_edits_and_replacements_are_hooks(module: Any, model: LanguageModel) -> None:
    with hooked(
        bare(GPT2),
        {"transformer.h.1": lambda output: output * 2},
        {"transformer.h.2.mlp": lambda args, kwargs: ((args[0] - 1,), kwargs)},
    ):
        expected = bare(GPT2)(**encoded(LONG)).logits
    with model.trace(LONG):
        model.transformer.h[1].output = model.transformer.h[1].output * 2
        model.transformer.h[2].mlp.input = model.transformer.h[2].mlp.input - 1
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_unequal_prompts(module: Any, model: LanguageModel) -> None:
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            long = model.output.logits.save()
    assert_near(short[:, -2:], models.logits_of(GPT2, SHORT))
    assert_near(long, models.logits_of(GPT2, LONG))


def test_a_module_called_in_a_block_gets_its_weights(module: Any, model: LanguageModel) -> None:
    lens = bare(GPT2)
    with models.recorded(lens, ["transformer.h.1"]) as seen:
        lens(**encoded(LONG))
    expected = lens.lm_head(lens.transformer.ln_f(seen["transformer.h.1"][0]))
    with model.trace(LONG):
        hidden = model.transformer.h[1].output
        logits = model.lm_head(model.transformer.ln_f(hidden)).save()
    assert_same(logits, expected)


def test_a_generation(module: Any, model: LanguageModel) -> None:
    with models.recorded(bare(GPT2), ["transformer.h.1"]) as seen:
        expected = bare(GPT2).generate(**encoded(LONG), **GREEDY)
    with model.generate(LONG, **GREEDY) as tracer:
        hidden = [].save()
        for _ in tracer.iter[:]:
            hidden.append(model.transformer.h[1].output)
        tokens = tracer.result.save()
    assert_same(tokens, expected)
    assert_same(list(hidden), seen["transformer.h.1"])


def test_a_gradient_with_respect_to_a_hidden_state(module: Any, model: LanguageModel) -> None:
    plain = bare(GPT2)
    kept = []
    with hooked(plain, {"transformer.h.1": lambda o: kept.append(o.requires_grad_())}):
        loss = plain(**encoded(LONG)).logits.pow(2).sum()
    expected = torch.autograd.grad(loss, kept[0])[0]
    with model.trace(LONG):
        hidden = model.transformer.h[1].output
        hidden.requires_grad_(True)
        loss = model.output.logits.pow(2).sum()
        with loss.backward():
            grad = hidden.grad.save()
    assert_near(grad, expected)


def test_the_device_is_where_it_computes(module: Any, model: LanguageModel) -> None:
    assert model.device == torch.device("cpu")
    assert model.transformer.h[1].device == torch.device("cpu")
    assert model.transformer.h[1].mlp.c_fc.weight.is_meta
    assert model.transformer.h[1].mlp.act.device == torch.device("cpu")


def test_the_device_of_a_model_that_is_not_loaded_is_meta(folder: Path) -> None:
    assert LanguageModel(str(folder)).device == torch.device("meta")


def test_any_module_is_offloaded(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    expected = module[0](x)
    result = module[2](expected * 2)
    accelerate.cpu_offload(module, execution_device=torch.device("cpu"))
    model = NNsight(module)
    with model.trace(x):
        hidden = model[0].output.save()
        model[2].input = hidden * 2
        output = model.output.save()
    assert_same(hidden, expected)
    assert_same(output, result)
    assert module[0].weight.is_meta


# loaded from a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_gpt2().save_pretrained(tmp_path / "model")
    models.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_device_map_of_auto(folder: Path) -> None:
    model = LanguageModel(str(folder), device_map="auto")
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()
        logits = model.output.logits.save()
    assert_same(hidden, models.output_of(GPT2, LONG, "transformer.h.1"))
    assert_same(logits, models.logits_of(GPT2, LONG))
    plain = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
    # where all fits on one device, transformers does not spread it
    spread = getattr(plain, "hf_device_map", None)
    assert getattr(model, "hf_device_map", None) == spread
    assert model.device == plain.device


def test_a_device_map_with_the_disk_in_it(folder: Path, tmp_path: Path) -> None:
    places = dict.fromkeys(PARTS, "cpu") | {"transformer.h.1": "disk"}
    model = LanguageModel(
        str(folder), device_map=places, offload_folder=str(tmp_path / "off"), dispatch=True
    )
    assert model.transformer.h[1].mlp.c_fc.weight.is_meta
    assert not model.transformer.h[0].mlp.c_fc.weight.is_meta
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()
        model.transformer.h[2].output[:, -1] = 0
        logits = model.output.logits.save()
    assert model.transformer.h[1].mlp.c_fc.weight.is_meta
    assert_same(hidden, models.output_of(GPT2, LONG, "transformer.h.1"))

    def edit(output: torch.Tensor) -> None:
        output[:, -1] = 0

    with hooked(bare(GPT2), {"transformer.h.2": edit}):
        assert_same(logits, bare(GPT2)(**encoded(LONG)).logits)
