"""What was saved before a run failed is there afterwards, as it is in plain Python."""

import pytest
import torch
from torch import nn

from nnsight_dsl import GenerationEndedError, NNsight
from tests import models

X = torch.ones(1, 3)


def new_model() -> NNsight:
    return NNsight(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))


def test_what_a_trace_of_a_session_saved_before_it_failed_leaves_the_session() -> None:
    model = new_model()
    with pytest.raises(ZeroDivisionError), model.session():
        with model.trace(X):
            first = model[0].output.save()
        with model.trace(X):
            second = model[0].output.save()
            1 // 0
    assert torch.equal(second, first)


def test_what_it_saved_leaves_a_session_that_catches_the_error() -> None:
    model = new_model()
    with model.session():
        try:
            with model.trace(X):
                saved = model[0].output.save()
                1 // 0
        except ZeroDivisionError:
            caught = [True].save()
    assert caught == [True]
    assert torch.equal(saved, model._module[0](X))


def test_the_last_trace_that_saved_a_name_is_the_one_that_leaves() -> None:
    model = new_model()
    with pytest.raises(ZeroDivisionError), model.session():
        with model.trace(X):
            hidden = model[0].output.save()
        with model.trace(X * 2):
            hidden = model[0].output.save()
            1 // 0
    assert torch.equal(hidden, model._module[0](X * 2))


def test_what_the_session_binds_later_is_what_leaves() -> None:
    model = new_model()
    with model.session():
        try:
            with model.trace(X):
                found = [model[0].output].save()
                1 // 0
        except ZeroDivisionError:
            found = ["later"].save()
    assert found == ["later"]


def test_what_it_did_not_save_stays_in_the_session() -> None:
    model, hidden = new_model(), None
    with pytest.raises(ZeroDivisionError), model.session():
        with model.trace(X):
            hidden = model[0].output
            1 // 0
    assert hidden is None


def test_what_an_invoke_saved_leaves_that_another_one_has_let_go_on() -> None:
    model = models.wrapped(models.GPT2)
    with pytest.raises(ZeroDivisionError), model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(models.SHORT):
            barrier()
            1 // 0
        with tracer.invoke(models.SHORT):
            found = [1].save()
            barrier()
    assert found == [1]


def test_what_a_backward_block_saved_before_it_failed_leaves_the_trace() -> None:
    model = new_model()
    with pytest.raises(ZeroDivisionError), model.trace(X):
        hidden = model[0].output
        with model.output.sum().backward():
            grad, unsaved = hidden.grad.save(), 5
            1 // 0
    assert torch.equal(grad, model._module[1].weight.sum(0, keepdim=True))
    assert "unsaved" not in locals()


def test_what_it_saved_leaves_when_autograd_itself_fails_and_in_a_session() -> None:
    model = new_model()
    with pytest.raises(RuntimeError, match="of my own"), model.session():
        with model.trace(X) as tracer:
            hidden = model[0].output
            outer = [tracer].save()
            hidden.register_hook(refuse)
            out = model.output
            with out.sum().backward():
                late = out.grad.save()
                early = hidden.grad.save()
    assert torch.equal(late, torch.ones(1, 3)) and len(outer) == 1
    assert "early" not in locals()


def refuse(grad: torch.Tensor) -> None:
    raise RuntimeError("of my own")


def test_what_a_backward_block_by_itself_saved_before_it_failed_leaves_it() -> None:
    module = new_model()._module
    hidden = module[0](X)
    loss = module[1](hidden).sum()
    with pytest.raises(ZeroDivisionError):
        with loss.backward():
            grad = hidden.grad.save()
            1 // 0
    assert torch.equal(grad, module[1].weight.sum(0, keepdim=True))


def test_what_the_trace_binds_behind_a_failed_backward_block_is_what_leaves() -> None:
    model = new_model()
    with model.trace(X):
        hidden = model[0].output
        try:
            with model.output.sum().backward():
                kept, found = hidden.grad.save(), [1].save()
                1 // 0
        except ZeroDivisionError:
            found = ["later"].save()
    assert found == ["later"] and torch.equal(kept, model._module[1].weight.sum(0, keepdim=True))


def test_what_a_block_binds_while_it_is_closed_leaves() -> None:
    model = new_model()
    model._module[1].register_forward_hook(lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError), model.trace(X):
        before = [].save()
        try:
            late = model[1].output
        finally:
            found = ["closed"].save()
            del before
    assert found == ["closed"]
    assert "before" not in locals()


def test_an_invoke_behind_its_loop_has_the_result_before_another_one_fails() -> None:
    model = models.wrapped(models.GPT2)
    options = {"max_new_tokens": 1, "do_sample": False}
    with pytest.warns(UserWarning, match="ended after 1 steps"):
        with pytest.raises(GenerationEndedError), model.generate(**options) as tracer:
            with tracer.invoke(models.SHORT):
                for step in tracer.iter[0:2]:
                    pass
                found = tracer.result.save()
            with tracer.invoke(models.SHORT):
                for step in tracer.iter[:]:
                    pass
                model.transformer.h[0].output[:] = 0  # noqa: NNS105
    assert found.shape[0] == 1


def test_a_name_that_the_failed_run_bound_anew_does_not_leave_with_its_old_value() -> None:
    model = new_model()
    name, kept, later = "before", None, "before"
    with pytest.raises(ZeroDivisionError), model.session():
        with model.trace(X):
            name = later = model[0].output
        with model.trace(X):
            kept = name.save()
            name = 1
            1 // 0
    assert name == "before"
    assert kept is later
    with pytest.raises(ZeroDivisionError), model.trace(X):
        name = model[0].output
        loss = model[1].output.sum()
        with loss.backward():
            kept = name.save()
            name = 1
            1 // 0
    assert name == "before"
