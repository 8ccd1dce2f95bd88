"""Caches: each argument of `tracer.cache` beside what hooks record."""

import pytest
import torch

from nnsight_dsl import LanguageModel, NNsight, NotRunningError, PathError
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
    output_of,
    recorded,
)

LAYER = "transformer.h.1"


@pytest.fixture
def plain():
    """What each call of each module returns in a plain run."""
    with recorded(bare(GPT2)) as seen:
        with torch.no_grad():
            bare(GPT2)(**encoded(LONG))
    return seen


def test_all_modules_that_are_called(gpt2: LanguageModel, plain) -> None:
    with gpt2.trace(LONG) as tracer:
        cache = tracer.cache()
    assert set(cache) == {f"model.{path}".removesuffix(".") for path in plain}
    for path, (output,) in plain.items():
        if isinstance(output, torch.Tensor):
            assert_same(cache[f"model.{path}"].output, output)
    assert_same(cache.model.output.logits, plain["lm_head"][0])


def test_modules_by_envoy_by_path_and_as_a_list_of_layers(gpt2: LanguageModel, plain) -> None:
    with gpt2.trace(LONG) as tracer:
        mixed = tracer.cache(modules=["lm_head", gpt2.transformer.h[0]])
        layers = tracer.cache(modules=gpt2.transformer.h)
    assert list(mixed) == ["model.transformer.h.0", "model.lm_head"]
    assert list(layers) == [f"model.transformer.h.{number}" for number in range(3)]
    assert_same(layers.model.transformer.h[2].output, plain["transformer.h.2"][0])


def test_an_unknown_module_is_refused(gpt2: LanguageModel) -> None:
    with pytest.raises(PathError, match="nothing_there"):
        with gpt2.trace(LONG) as tracer:
            cache = tracer.cache(modules=["nothing_there"])


def test_device_and_dtype(gpt2: LanguageModel, plain) -> None:
    with gpt2.trace(LONG) as tracer:
        half = tracer.cache(modules=[LAYER], dtype=torch.float16, device="cpu")
        away = tracer.cache(modules=[LAYER], device="meta")
        ids = tracer.cache(modules=["transformer.wte"], dtype=torch.float16, include_inputs=True)
    assert_same(half[f"model.{LAYER}"].output, plain[LAYER][0].half())
    assert away[f"model.{LAYER}"].output.device.type == "meta"
    # integers are left as they are
    assert ids["model.transformer.wte"].input.dtype == torch.int64


def test_detach(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG) as tracer:
        cut = tracer.cache(modules=[LAYER])
        kept = tracer.cache(modules=[LAYER], detach=False, device=None)
        loss = gpt2.lm_head.output.sum().save()
    assert not cut[f"model.{LAYER}"].output.requires_grad
    with hooked(bare(GPT2)):
        module = bare(GPT2)
        with recorded(module, [LAYER]) as seen:
            module(**encoded(LONG))
    weight = gpt2._module.transformer.h[0].ln_1.weight
    (found,) = torch.autograd.grad(kept[f"model.{LAYER}"].output.sum(), weight)
    (wanted,) = torch.autograd.grad(seen[LAYER][0].sum(), module.transformer.h[0].ln_1.weight)
    assert_same(found, wanted)


def test_inputs_and_no_outputs(gpt2: LanguageModel) -> None:
    given = {}

    def keep(args, kwargs):
        given["args"], given["kwargs"] = args, dict(kwargs)

    with hooked(bare(GPT2), before={LAYER: keep}):
        bare(GPT2)(**encoded(LONG))
    with gpt2.trace(LONG) as tracer:
        cache = tracer.cache(modules=[LAYER], include_output=False, include_inputs=True)
        outputs = tracer.cache(modules=[LAYER])
    entry = cache[f"model.{LAYER}"]
    args, kwargs = entry.inputs
    assert_same(args[0], given["args"][0].detach())
    assert set(kwargs) == set(given["kwargs"])
    assert_same(entry.input, args[0])
    with pytest.raises(AttributeError, match="include_output=True"):
        entry.output
    with pytest.raises(AttributeError, match="include_inputs=True"):
        outputs.model.transformer.h[1].input


def test_renamed_paths_lead_to_their_modules() -> None:
    rename = {"transformer.h": "layers", "mlp": "ff", ".transformer": ["backbone"]}
    model = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer(), rename=rename)
    expected = output_of(GPT2, LONG, "transformer.h.1.mlp").detach()
    with model.trace(LONG) as tracer:
        cache = tracer.cache(modules=[model.layers[0].ff, "layers.1.ff"])
    assert list(cache) == ["model.transformer.h.0.mlp", "model.transformer.h.1.mlp"]
    for found in (
        cache["model.layers.1.ff"].output,
        cache["model.backbone.h.1.mlp"].output,
        cache.model.layers[1].ff.output,
        cache.model.transformer.h[1].mlp.output,
    ):
        assert_same(found, expected)


def test_each_step_of_a_generation(gpt2: LanguageModel) -> None:
    paths = ["transformer.h.1", "lm_head"]
    inputs = []
    with hooked(bare(GPT2), before={"lm_head": lambda args, kwargs: inputs.append(args[0])}):
        with recorded(bare(GPT2), paths) as seen:
            bare(GPT2).generate(**encoded(LONG), max_new_tokens=3, do_sample=False)
    with gpt2.generate(LONG, max_new_tokens=3, do_sample=False) as tracer:
        cache = tracer.cache(modules=paths, include_inputs=True)
    assert_same(cache.model.transformer.h[1].output, seen["transformer.h.1"])
    assert_same(cache.model.lm_head.output, seen["lm_head"])
    assert_same(cache.model.lm_head.input, inputs)
    assert_same([args[0] for args, _ in cache.model.lm_head.inputs], inputs)


def test_each_invoke_has_its_rows_and_one_beside_them_has_all(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        beside = tracer.cache(modules=[LAYER])
        with tracer.invoke(SHORT):
            first = tracer.cache(modules=[LAYER])
        with tracer.invoke(LONG):
            second = tracer.cache(modules=[LAYER])
        with tracer.invoke():
            both = tracer.cache(modules=[LAYER])
    key = f"model.{LAYER}"
    assert_near(GPT2.own(first[key].output, SHORT), output_of(GPT2, SHORT, LAYER))
    assert_near(second[key].output, output_of(GPT2, LONG, LAYER))
    assert_same(both[key].output, torch.cat([first[key].output, second[key].output]))
    assert_same(beside[key].output, both[key].output)


def test_what_is_kept_comes_after_the_edits_of_all_blocks(gpt2: LanguageModel) -> None:
    with gpt2.trace() as tracer:
        with tracer.invoke(SHORT):
            cache = tracer.cache(modules=[LAYER])
            gpt2.transformer.h[1].output[:] = 1
        with tracer.invoke():
            gpt2.transformer.h[1].output = gpt2.transformer.h[1].output * 3
    assert (cache[f"model.{LAYER}"].output == 3).all()


def test_what_is_kept_is_a_copy(gpt2: LanguageModel, plain) -> None:
    with gpt2.trace(LONG) as tracer:
        cache = tracer.cache(modules=[LAYER])
        hidden = gpt2.transformer.h[1].output
        gpt2.transformer.h[2].input
        with torch.no_grad():
            hidden.detach()[:] = 0
    assert_same(cache[f"model.{LAYER}"].output, plain[LAYER][0])


def test_a_cache_that_is_opened_late_has_what_comes_then(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG) as tracer:
        hidden = gpt2.transformer.h[1].output
        cache = tracer.cache(modules=gpt2.transformer.h)
        everything = tracer.cache()
    assert list(cache) == ["model.transformer.h.1", "model.transformer.h.2"]
    assert "model.transformer.h.2.mlp.c_fc" in everything
    assert "model.transformer.h.0" not in everything


def test_a_cache_leaves_a_session(gpt2: LanguageModel, plain) -> None:
    with gpt2.session():
        with gpt2.trace(LONG) as tracer:
            cache = tracer.cache(modules=[LAYER])
    assert_same(cache[f"model.{LAYER}"].output, plain[LAYER][0])


def test_a_cache_outside_of_a_block_is_refused(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG) as tracer:
        hidden = gpt2.transformer.h[1].output
    with pytest.raises(NotRunningError, match=r"tracer\.cache\(\)"):
        tracer.cache()


class Pair(torch.nn.Module):
    """Two layers, one of which may stand at both places."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def _by_hooks(module, x):
    """Return what each called module returns, by path."""
    seen = {}
    handles = [
        one.register_forward_hook(lambda _m, _a, out, path=path: seen.setdefault(path, out))
        for path, one in module.named_modules()
    ]
    module(x)
    for handle in handles:
        handle.remove()
    return {f"model.{path}".removesuffix("."): output for path, output in seen.items()}


def test_a_model_that_has_changed_since_the_last_run_is_cached_as_it_is() -> None:
    module = Pair()
    model, x = NNsight(module), torch.ones(1, 3)

    def exchange() -> None:
        module.layers[1] = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())

    def nothing() -> None:
        pass

    changes = (
        nothing,
        nothing,
        exchange,
        lambda: module.layers.append(torch.nn.Linear(3, 3)),
        lambda: module.layers[1].append(torch.nn.Tanh()),
        lambda: module.layers.pop(0),
        lambda: module.layers[0][0].register_module("more", torch.nn.Identity()),
        lambda: setattr(module, "layers", torch.nn.ModuleList([torch.nn.Linear(3, 3)])),
    )
    for change in changes:
        change()
        with model.trace(x) as tracer:
            cache = tracer.cache()
            result = model.output.save()
        expected = _by_hooks(module, x)
        assert set(cache) == set(expected)
        for path, output in expected.items():
            assert_same(cache[path].output, output)
        assert_same(result, expected["model"])


def test_a_module_at_two_places_has_one_entry() -> None:
    module = Pair()
    module.layers[1] = module.layers[0]
    model, x = NNsight(module), torch.ones(1, 3)
    with model.trace(x) as tracer:
        cache = tracer.cache()
    first = module.layers[0](x)
    assert set(cache) == {"model.layers.0", "model"}
    assert_same(cache["model.layers.1"].output, [first, module.layers[0](first)])


def test_a_cache_that_is_opened_inside_a_layer_has_the_layer(gpt2: LanguageModel, plain) -> None:
    with gpt2.trace(LONG) as tracer:
        hidden = gpt2.transformer.h[1].mlp.output
        cache = tracer.cache()
    assert_same(cache[f"model.{LAYER}"].output, plain[LAYER][0])
    assert "model.transformer.h.0" not in cache
