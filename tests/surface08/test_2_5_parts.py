"""Section 2.5 of the page on 0.8's surface: runs and edits of a part of a model."""

import copy
import pickle

import pytest
import torch

from nnsight_dsl import LanguageModel, NestedRunError, NNsight, NotRunningError
from tests import models
from tests.models import assert_near, assert_same

HIDDEN = torch.linspace(-1, 1, 48).reshape(1, 3, 16)


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())


def with_doubled_mlp(block: torch.nn.Module) -> torch.Tensor:
    hook = block.mlp.register_forward_hook(lambda module, args, output: output * 2)
    result = block(HIDDEN)
    hook.remove()
    return result


def test_a_head_is_run_on_a_vector(model):
    # the second time from what the first has cached
    for _ in range(2):
        with model.lm_head.trace(HIDDEN):
            given = model.lm_head.input.save()
            logits = model.lm_head.output.save()
        assert given is HIDDEN
        assert_same(logits, model.module.lm_head(HIDDEN))


def test_a_value_inside_of_a_part_is_changed(model):
    layer = model.transformer.h[1]
    for _ in range(2):
        with layer.trace(HIDDEN) as tracer:
            model.transformer.h[1].mlp.output = model.transformer.h[1].mlp.output * 2
            output = layer.output.save()
            result = tracer.result.save()
        assert_same([output, result], [with_doubled_mlp(layer._module)] * 2)


def test_the_output_of_a_part_is_replaced(model):
    with model.lm_head.trace(HIDDEN) as tracer:
        model.lm_head.output = torch.zeros(1)
        result = tracer.result.save()
    assert_same(result, torch.zeros(1))


def test_a_helper_reads_inside_of_a_part(model):
    def read():
        return model.transformer.h[0].attn.c_proj.output

    with model.transformer.h[0].trace(HIDDEN):
        first = read().save()
        second = model.transformer.h[0].mlp.source.self_act_0.output.save()
    block = model.module.transformer.h[0]
    seen = []
    hooks = [
        one.register_forward_hook(lambda *call: seen.append(call[2]))
        for one in (block.attn.c_proj, block.mlp.act)
    ]
    block(HIDDEN)
    for hook in hooks:
        hook.remove()
    assert_same([first, second], seen)


def test_without_a_block_a_part_returns_its_output(model):
    result = model.lm_head.trace(HIDDEN, trace=False)
    assert_same(result, model.module.lm_head(HIDDEN))


def test_a_place_outside_of_the_part_has_no_value(model):
    with pytest.raises(NotRunningError, match=r"transformer\.h\.0\.output is not in lm_head"):
        with model.lm_head.trace(HIDDEN):
            model.transformer.h[0].output.save()


def test_a_part_is_not_run_in_a_run_of_its_model(model):
    with pytest.raises(NestedRunError, match="take turns"):
        with model.trace("the cat"):
            with model.lm_head.trace(HIDDEN):
                model.lm_head.output.save()


def test_a_cache_of_a_part_has_the_paths_of_the_model(model):
    with model.transformer.h[1].trace(HIDDEN) as tracer:
        cache = tracer.cache()
    with model.transformer.h[1].trace(HIDDEN) as tracer:
        few = tracer.cache(modules=["transformer.h.1.mlp", model.transformer.h[1].attn])
    assert list(cache)[-1] == "model.transformer.h.1"
    assert list(few) == ["model.transformer.h.1.attn", "model.transformer.h.1.mlp"]
    block = model.module.transformer.h[1]
    assert_same(cache["transformer.h.1"].output, block(HIDDEN).detach())
    assert_same(cache.model.transformer.h[1].mlp.output, few["transformer.h.1.mlp"].output)


def test_gradients_in_a_part(model):
    hidden = HIDDEN.clone().requires_grad_()
    with model.transformer.h[0].trace(hidden):
        inside = model.transformer.h[0].mlp.output
        with model.transformer.h[0].output.sum().backward():
            gradient = inside.grad.save()
    assert_same(gradient, torch.ones(1, 3, 16))


def test_a_scan_of_a_part(model):
    with model.transformer.h[1].scan(HIDDEN):
        shape = model.transformer.h[1].mlp.c_fc.output.shape
    assert shape == (1, 3, 64)


def test_a_session_of_a_part(model):
    with model.transformer.session():
        with model.transformer.h[0].trace(HIDDEN):
            hidden = model.transformer.h[0].output
        with model.transformer.h[1].trace(hidden):
            result = model.transformer.h[1].output.save()
    first, second, _ = model.module.transformer.h
    assert_same(result, second(first(HIDDEN)))


def test_an_edit_of_a_part_is_for_runs_of_the_part(model):
    layer = model.transformer.h[1]
    plain = layer._module(HIDDEN)
    with layer.edit(inplace=True):
        layer.mlp.output = layer.mlp.output * 2
    with layer.trace(HIDDEN):
        edited = layer.output.save()
    with model.trace("the cat"):
        whole = model.lm_head.output.save()
    assert_same(edited, with_doubled_mlp(layer._module))
    assert_same(whole, model.module(models.token_ids("the cat")).logits)
    layer.clear_edits()
    assert_same(layer.trace(HIDDEN, trace=False), plain)


def test_an_edited_copy_of_a_part(model):
    layer = model.transformer.h[1]
    with layer.edit() as edited:
        layer.mlp.output = layer.mlp.output * 2
    assert edited.path == layer.path
    with edited.trace(HIDDEN):
        inside = edited.mlp.output.save()
        result = edited.output.save()
    assert_same(result, with_doubled_mlp(layer._module))
    assert edited.mlp.path == "model.transformer.h.1.mlp"
    assert_near(inside, 2 * layer._module.mlp(layer._module.ln_2(result - inside)))
    assert_same(layer.trace(HIDDEN, trace=False), layer._module(HIDDEN))


def test_a_module_that_is_replaced_is_what_runs(model):
    with model.lm_head.trace(HIDDEN):
        model.lm_head.output.save()
    model.lm_head = torch.nn.Linear(16, 2)
    with model.lm_head.trace(HIDDEN):
        logits = model.lm_head.output.save()
    assert_same(logits, model.module.lm_head(HIDDEN))


def test_a_wrapper_of_a_part_reads_by_envoys_of_the_whole(model):
    part = NNsight(model.transformer.h[0])
    with part.trace(HIDDEN):
        hidden = model.transformer.h[0].mlp.output.save()
        result = part.output.save()
    assert_same(result, model.module.transformer.h[0](HIDDEN))
    assert hidden.shape == (1, 3, 16)


def test_copies_of_envoys_of_a_part(model):
    layer = model.transformer.h[1]
    with layer.edit() as edited:
        pass
    edited.clear_edits()
    for other in (copy.deepcopy(edited.mlp), pickle.loads(pickle.dumps(edited.mlp))):
        assert other._path == "transformer.h.1.mlp"
        assert_same(other(HIDDEN), layer._module.mlp(HIDDEN))


def test_parts_in_programs_for_08(gpt2):
    layer = gpt2.transformer.h[1]
    with layer.edit() as (tracer, edited):
        edited.mlp.output = edited.mlp.output * 2
    with edited.trace(HIDDEN):
        result = edited.output.save()
    assert_same(result, with_doubled_mlp(layer._module))
    with gpt2.lm_head.trace(HIDDEN):
        logits = gpt2.lm_head.output.save()
    assert_same(logits, gpt2.module.lm_head(HIDDEN))
