"""What goes wrong in a block is raised at the user's line, says what to do, and leaves no trace.

In each test the comment `# here` marks the line that the traceback has to end at.
"""

import copy
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn

import nnsight_dsl
from nnsight_dsl import CONFIG, LanguageModel, NNsight, errors
from tests import models
from tests.models import LONG, MIDDLE, SHORT

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / folder) + "/" for folder in ("nnsight_dsl", "runtime", "transforms"))
MARK = "# here"


class Net(nn.Module):
    """Two layers that run, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> Any:
        result: torch.Tensor = self.second(self.first(x))
        return result


def state_of(module: nn.Module) -> list[tuple[type, dict[str, Any]]]:
    return [(type(each), {**vars(each)}) for each in module.modules()]


@pytest.fixture
def net() -> Iterator[NNsight]:
    """A model that has to be as it was when the test is over, and to work."""
    torch.manual_seed(0)
    module = Net()
    before, output = state_of(module), module(X)
    model = NNsight(module)
    yield model
    assert state_of(module) == before
    assert torch.equal(module(X), output)
    with model.trace(X):
        again = model.output.save()
    assert torch.equal(again, output)
    copy.deepcopy(module)


@pytest.fixture
def gpt2() -> Iterator[LanguageModel]:
    """As `net`, a language model."""
    module = models.new_gpt2()
    output = module(**models.encoded(SHORT)).logits
    before = state_of(module)
    model = LanguageModel(module, tokenizer=models.tokenizer())
    yield model
    assert state_of(module) == before
    with model.trace(SHORT):
        again = model.lm_head.output.save()
    assert torch.equal(again, output)


@pytest.fixture
def debug() -> Iterator[None]:
    CONFIG.APP.DEBUG = True
    yield
    CONFIG.APP.DEBUG = False


X = torch.ones(2, 3)


def marked_line(function: Callable[..., Any]) -> int:
    lines, start = inspect.getsourcelines(function)
    (line,) = [start + i for i, text in enumerate(lines) if text.rstrip().endswith(MARK)]
    return line


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    todo = [error]
    while todo:
        current = todo.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield current
            todo += [current.__cause__, current.__context__]


def files_in(error: BaseException) -> list[str]:
    return [entry.filename for entry in traceback.extract_tb(error.__traceback__)]


def is_ours(filename: str) -> bool:
    return str(Path(filename).resolve()).startswith(OURS)


def assert_ends_here(error: BaseException, line: int) -> None:
    """Check that a traceback ends at a line of this file, with no frame or error of ours."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert (last.filename, last.lineno) == (__file__, line)
    for each in chain_of(error):
        assert not [name for name in files_in(each) if is_ours(name)]
        assert isinstance(each, Exception), "control flow of ours is no context of an error"


def assert_raised_by(error: BaseException, line: int) -> None:
    """Check that a traceback leads to a line of this file, and from there into this package.

    Outside of a block an accessor is an ordinary Python function, whose frame cannot be hidden.
    """
    entries = traceback.extract_tb(error.__traceback__)
    users = [entry for entry in entries if not is_ours(entry.filename)]
    assert line in [entry.lineno for entry in users if entry.filename == __file__]
    assert all(is_ours(entry.filename) for entry in entries[len(users) :])


def assert_explained(error: BaseException, *texts: str) -> None:
    """Check that a message states what was seen and, after a semicolon, what to do."""
    for text in texts:
        assert text in str(error)
    seen, semicolon, advice = str(error).partition("; ")
    assert seen and semicolon and advice
    assert not {"!", "please"} & set(str(error).lower().replace(",", " ").split())


def test_access_out_of_order(net, unlinted):
    calls = []
    net.second._module.register_forward_hook(lambda *_: calls.append("second"))
    try:
        with pytest.raises(errors.OutOfOrderError) as caught:
            with net.trace(X):
                late = net.first.output.save()
                net.first.input  # here
                never = net.second.output.save()
    finally:
        net.second._module._forward_hooks.clear()
    assert_ends_here(caught.value, marked_line(test_access_out_of_order))
    assert_explained(caught.value, "first.input has already passed", "move this access up")
    assert isinstance(caught.value, ValueError)
    assert calls == []  # raised at once, not after the run
    assert torch.equal(late, net.first._module(X))
    assert "never" not in locals()


def test_access_after_the_module_that_contains_it(gpt2, unlinted):
    with pytest.raises(errors.OutOfOrderError) as caught:
        with gpt2.trace(SHORT):
            kept = gpt2.transformer.h[0].output.save()
            gpt2.transformer.h[0].mlp.output  # here
    assert_ends_here(caught.value, marked_line(test_access_after_the_module_that_contains_it))
    assert_explained(caught.value, "transformer.h.0.mlp.output")
    assert kept.shape == (1, 2, 16)


def test_write_out_of_order(net):
    with pytest.raises(errors.OutOfOrderError) as caught:
        with net.trace(X):
            kept = net.second.output.save()
            net.first.output = X  # here
    assert_ends_here(caught.value, marked_line(test_write_out_of_order))
    assert_explained(caught.value, "first.output has already passed", "move this access up")
    assert kept.shape == X.shape


def test_module_that_is_never_called(net):
    with pytest.raises(errors.NotCalledError) as caught:
        with net.trace(X):
            kept = net.first.output.save()
            net.unused.output  # here
    assert_ends_here(caught.value, marked_line(test_module_that_is_never_called))
    assert_explained(caught.value, "unused.output was never computed", "print(model)")
    assert isinstance(caught.value, ValueError)
    assert kept.shape == X.shape


def test_module_that_was_skipped(gpt2):
    with pytest.raises(errors.NotCalledError) as caught:
        with gpt2.trace(SHORT):
            gpt2.transformer.h[1].skip(gpt2.transformer.h[0].output)
            gpt2.transformer.h[1].mlp.output  # here
    assert_ends_here(caught.value, marked_line(test_module_that_was_skipped))
    assert_explained(caught.value, "transformer.h.1.mlp.output")


def test_path_that_does_not_exist(gpt2):
    with pytest.raises(errors.PathError) as caught:
        with gpt2.trace(SHORT):
            kept = gpt2.transformer.h[0].output.save()
            gpt2.transformer.h[1].mpl.output  # here
    assert_ends_here(caught.value, marked_line(test_path_that_does_not_exist))
    assert_explained(caught.value, "'mpl'", "did you mean 'mlp'?", "print(model)")
    assert isinstance(caught.value, AttributeError)
    assert kept.shape == (1, 2, 16)


def test_path_that_does_not_exist_outside_of_a_block(gpt2):
    with pytest.raises(errors.PathError) as caught:
        gpt2.get("transformer.h.0.attm")  # here
    assert_raised_by(caught.value, marked_line(test_path_that_does_not_exist_outside_of_a_block))
    assert_explained(caught.value, "transformer.h.0 has no", "did you mean 'attn'?")


def test_layer_that_does_not_exist(gpt2):
    with pytest.raises(IndexError) as caught:
        with gpt2.trace(SHORT):
            gpt2.transformer.h[3].output  # here
    assert_ends_here(caught.value, marked_line(test_layer_that_does_not_exist))
    assert_explained(caught.value, "transformer.h has 3 modules", "0 to 2")


def test_port_that_does_not_exist(net):
    with pytest.raises(errors.PathError) as caught:
        with net.trace(X):
            net.first.outptu  # here
    assert_ends_here(caught.value, marked_line(test_port_that_does_not_exist))
    assert_explained(caught.value, "did you mean 'output'?")


def test_trace_without_input(net):
    with pytest.raises(errors.NoInputError) as caught:
        with net.trace():
            net.first.output  # here
    assert_ends_here(caught.value, marked_line(test_trace_without_input))
    assert_explained(caught.value, "model.trace(input)", "tracer.invoke(input)")
    assert isinstance(caught.value, ValueError)


def test_trace_with_promptless_invokes_only(gpt2):
    with pytest.raises(errors.NoInputError) as caught:
        with gpt2.trace() as tracer:  # here
            with tracer.invoke():
                gpt2.lm_head.output
    assert_ends_here(caught.value, marked_line(test_trace_with_promptless_invokes_only))
    assert_explained(caught.value, "tracer.invoke(input)")


def test_value_beside_invokes(gpt2):
    with pytest.raises(errors.InvokeError) as caught:
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT):
                gpt2.transformer.h[0].output.save()
            gpt2.lm_head.output  # here
    assert_ends_here(caught.value, marked_line(test_value_beside_invokes))
    assert_explained(caught.value, "lm_head.output", "tracer.invoke()")


def test_invoke_inside_an_invoke(gpt2, unlinted):
    with pytest.raises(errors.InvokeError) as caught:
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT):
                kept = gpt2.transformer.h[0].output.save()
                with tracer.invoke(LONG):  # here
                    gpt2.lm_head.output.save()
    assert_ends_here(caught.value, marked_line(test_invoke_inside_an_invoke))
    assert_explained(caught.value, "invoke", "directly in the trace")
    assert kept.shape == (1, 2, 16)


def test_invoke_inside_a_trace_with_input(gpt2):
    with pytest.raises(errors.InvokeError) as caught:
        with gpt2.trace(SHORT) as tracer:  # here
            with tracer.invoke(LONG):
                gpt2.lm_head.output.save()
    assert_ends_here(caught.value, marked_line(test_invoke_inside_a_trace_with_input))
    assert_explained(caught.value, "model.trace() as tracer")


def test_value_outside_of_a_run(net):
    with pytest.raises(errors.NotRunningError) as caught:
        net.first.output  # here
    assert_raised_by(caught.value, marked_line(test_value_outside_of_a_run))
    assert_explained(caught.value, "first.output", "with model.trace(...)", "save it")
    assert isinstance(caught.value, ValueError)


def test_write_outside_of_a_run(net):
    with pytest.raises(errors.NotRunningError) as caught:
        net.first.output = X  # here
    assert_raised_by(caught.value, marked_line(test_write_outside_of_a_run))
    assert_explained(caught.value, "first.output", "with model.trace(...)")


def test_save_outside_of_a_run():
    with pytest.raises(errors.NotRunningError) as caught:
        nnsight_dsl.save(3)  # here
    assert_raised_by(caught.value, marked_line(test_save_outside_of_a_run))
    assert_explained(caught.value, "with model.trace(...)")


def test_value_in_finally_after_the_run(net):
    with pytest.raises(errors.NotRunningError) as caught:
        with net.trace(X) as tracer:
            try:
                kept = net.first.output.save()
                tracer.stop()
            finally:
                net.second.output  # here
    assert_ends_here(caught.value, marked_line(test_value_in_finally_after_the_run))
    assert_explained(caught.value, "the run has ended", "outside of 'finally'")
    assert kept.shape == X.shape


def test_no_tokenizer():
    model = LanguageModel(models.new_gpt2())
    with pytest.raises(errors.TokenizerNotFoundError) as caught:
        with model.trace(SHORT):  # here
            model.lm_head.output
    assert_ends_here(caught.value, marked_line(test_no_tokenizer))
    assert_explained(caught.value, "Tokenizer not found", "tokenizer=tokenizer", "token ids")
    assert isinstance(caught.value, AttributeError)
    with model.trace(models.token_ids(SHORT)):
        logits = model.lm_head.output.save()
    assert logits.shape[:2] == (1, 2)


def test_batching_where_nothing_says_how(net):
    with pytest.raises(errors.BatchingError) as caught:
        with net.trace() as tracer:  # here
            with tracer.invoke(X):
                net.first.output.save()
            with tracer.invoke(X):
                net.first.output.save()
    assert_ends_here(caught.value, marked_line(test_batching_where_nothing_says_how))
    assert_explained(caught.value, "2 invokes", "Net", "LanguageModel")
    assert isinstance(caught.value, NotImplementedError)


def test_write_that_the_model_chokes_on(net):
    with pytest.raises(errors.WriteShapeError) as caught:
        with net.trace(X):
            kept = net.first.input.save()
            net.first.output = torch.ones(2, 5)  # here
            net.second.output.save()
    assert_ends_here(caught.value, marked_line(test_write_that_the_model_chokes_on))
    line = marked_line(test_write_that_the_model_chokes_on)
    assert_explained(caught.value, f"line {line}", "(2, 5)", "(2, 3)", "first.output")
    assert isinstance(caught.value, RuntimeError)
    cause = caught.value.__cause__
    assert type(cause) is RuntimeError
    assert any("torch" in name for name in files_in(cause))
    assert torch.equal(kept, X)


def test_write_of_another_type(net):
    with pytest.raises(errors.WriteShapeError) as caught:
        with net.trace(X):
            net.first.output = X, X  # here
    assert_ends_here(caught.value, marked_line(test_write_of_another_type))
    assert_explained(caught.value, "first.output")


def test_write_of_another_shape_in_an_invoke(gpt2):
    with pytest.raises(errors.InterventionError) as caught:
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT):
                gpt2.transformer.h[0].output = torch.ones(1, 9, 16)  # here
            with tracer.invoke(LONG):
                kept = gpt2.transformer.wte.output.save()
    assert_ends_here(caught.value, marked_line(test_write_of_another_shape_in_an_invoke))
    assert_explained(caught.value, "(1, 9, 16)", "(1, 8, 16)", "make it fit")
    assert kept.shape == (1, 8, 16)


def test_write_to_a_result(net):
    with pytest.raises(errors.WriteError) as caught:
        with net.trace(X) as tracer:
            tracer.result = 3  # here
    assert_ends_here(caught.value, marked_line(test_write_to_a_result))
    assert_explained(caught.value, "tracer.result")


def test_run_inside_a_run(net):
    with pytest.raises(errors.NestedRunError) as caught:
        with net.trace(X):
            kept = net.first.output.save()
            with net.trace(X):  # here
                net.first.output.save()
    assert_ends_here(caught.value, marked_line(test_run_inside_a_run))
    assert_explained(caught.value, "end the outer trace first")
    assert kept.shape == X.shape


def test_barrier_for_more_invokes_than_come(gpt2):
    with pytest.raises(errors.BarrierError) as caught:
        with gpt2.trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(SHORT):
                kept = gpt2.transformer.h[0].output.save()
                barrier()  # here
            with tracer.invoke(LONG):
                gpt2.transformer.h[0].output
    assert_ends_here(caught.value, marked_line(test_barrier_for_more_invokes_than_come))
    assert_explained(caught.value, "1 of 2 invokes")
    assert kept.shape == (1, 8, 16)


def test_barrier_for_no_invoke(gpt2):
    with pytest.raises(errors.BarrierError) as caught:
        with gpt2.trace() as tracer:
            tracer.barrier(0)  # here
    assert_ends_here(caught.value, marked_line(test_barrier_for_no_invoke))
    assert_explained(caught.value, "0 invokes", "at least 1")


def test_barrier_outside_of_the_invokes(gpt2):
    with pytest.raises(errors.BarrierError) as caught:
        with gpt2.trace() as tracer:
            barrier = tracer.barrier(1)
            barrier()  # here
            with tracer.invoke(SHORT):
                gpt2.lm_head.output
    assert_ends_here(caught.value, marked_line(test_barrier_outside_of_the_invokes))
    assert_explained(caught.value, "inside each invoke")


def test_shared_name_that_is_never_bound(gpt2):
    flag = False
    with pytest.raises(errors.SharedNameError) as caught:
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT):
                if flag:
                    shared = gpt2.transformer.wte.output
            with tracer.invoke(MIDDLE):
                gpt2.transformer.h[0].output = shared  # here
    assert_ends_here(caught.value, marked_line(test_shared_name_that_is_never_bound))
    assert_explained(caught.value, "'shared'", "never bound", "bind it in every branch")
    assert isinstance(caught.value, NameError)


def test_shared_name_that_is_bound_in_a_loop(gpt2):
    with pytest.raises(errors.SharedNameError) as caught:
        with gpt2.trace() as tracer:  # here
            with tracer.invoke(SHORT):
                for layer in gpt2.transformer.h:
                    shared = layer.output
            with tracer.invoke(SHORT):
                gpt2.lm_head.output = shared
    line = marked_line(test_shared_name_that_is_bound_in_a_loop)
    assert_ends_here(caught.value, line)  # before the run
    assert_explained(caught.value, f"the invoke at line {line + 4}", "'shared'", "barrier(2)")


def test_shared_name_that_is_bound_twice(gpt2):
    with pytest.raises(errors.SharedNameError) as caught:
        with gpt2.trace() as tracer:  # here
            with tracer.invoke(SHORT):
                shared = gpt2.transformer.h[0].output
                shared = gpt2.transformer.h[1].output
            with tracer.invoke(SHORT):
                gpt2.lm_head.output = shared
    line = marked_line(test_shared_name_that_is_bound_twice)
    assert_ends_here(caught.value, line)  # before the run
    assert_explained(caught.value, "'shared'", "more than once", "barrier(2)")


def test_edit_of_a_tensor_that_was_replaced(gpt2):
    with pytest.raises(errors.StaleEditError) as caught:
        with gpt2.trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(SHORT):
                mine = gpt2.transformer.h[0].output
                barrier()
                mine[:] = 0
                gpt2.lm_head.output  # here
            with tracer.invoke(SHORT):
                gpt2.transformer.h[0].output = gpt2.transformer.h[0].output * 2
                barrier()
    assert_ends_here(caught.value, marked_line(test_edit_of_a_tensor_that_was_replaced))
    assert_explained(caught.value, "transformer.h.0.output", "read the location again")


def test_access_after_the_generation(gpt2, unlinted):
    with pytest.raises(errors.GenerationEndedError) as caught:
        with gpt2.generate(SHORT, max_new_tokens=2, min_new_tokens=2) as tracer:
            seen = [].save()
            for _ in tracer.iter[:]:
                seen.append(gpt2.lm_head.output[:, -1])
            gpt2.lm_head.output  # here
    assert_ends_here(caught.value, marked_line(test_access_after_the_generation))
    assert_explained(caught.value, "lm_head.output", "2 steps", "inside the loop")
    assert isinstance(caught.value, errors.OutOfOrderError)
    assert len(seen) == 2


def test_block_entered_without_with(net):
    with ExitStack() as stack:
        with pytest.raises(errors.BlockUseError) as caught:
            stack.enter_context(net.trace(X))  # here
    lines = [entry.lineno for entry in traceback.extract_tb(caught.value.__traceback__)]
    assert marked_line(test_block_entered_without_with) in lines
    assert_explained(caught.value, "otherwise than by a 'with' statement", "with the block below")
    assert isinstance(caught.value, TypeError)


def test_block_without_source(net):
    code = compile("with net.trace(X):\n    kept = net.first.output.save()\n", "<nowhere>", "exec")
    with pytest.raises(errors.BlockNotFoundError) as caught:
        exec(code, {"net": net, "X": X})
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == ("<nowhere>", 1)
    assert_explained(caught.value, "'<nowhere>'", "line 1", "linecache")
    assert isinstance(caught.value, OSError)


def test_block_with_registered_source(net):
    text = "with net.trace(X):\n    kept = net.first.output.save()\n"
    linecache.cache["<registered>"] = (len(text), None, text.splitlines(True), "<registered>")
    names: dict[str, Any] = {"net": net, "X": X}
    try:
        exec(compile(text, "<registered>", "exec"), names)
    finally:
        del linecache.cache["<registered>"]
    assert torch.equal(names["kept"], net.first._module(X))


def test_construct_that_cannot_be_lowered(net):
    def find():
        with net.trace(X):
            return net.first.output  # noqa: NNS801

    with pytest.raises(errors.UnsupportedSyntaxError) as caught:
        find()
    error = caught.value
    line = find.__code__.co_firstlineno + 2
    assert (error.filename, error.lineno) == (__file__, line)
    assert_explained(error, "'return'", "after the block")
    assert isinstance(error, SyntaxError)
    last = traceback.extract_tb(error.__traceback__)[-1]
    assert (last.filename, last.lineno) == (__file__, line - 1)


# errors of the user's own


def test_error_of_the_users_keeps_its_type(net):
    mine = ValueError("mine")
    with pytest.raises(ValueError) as caught:
        with net.trace(X):
            kept = net.first.output.save()
            raise mine  # here
    assert caught.value is mine
    assert mine.__context__ is None and mine.__cause__ is None
    assert_ends_here(mine, marked_line(test_error_of_the_users_keeps_its_type))
    assert kept.shape == X.shape


def look_up(key: str) -> int:
    return {"known": 1}[key]  # here


def test_error_in_a_function_that_a_block_calls(net):
    with pytest.raises(KeyError) as caught:
        with net.trace(X):
            kept = net.first.output.save()
            look_up("unknown")
    assert type(caught.value) is KeyError
    assert_ends_here(caught.value, marked_line(look_up))
    functions = [entry.name for entry in traceback.extract_tb(caught.value.__traceback__)]
    assert functions[-2:] == ["test_error_in_a_function_that_a_block_calls", "look_up"]
    assert kept.shape == X.shape


def read_late(layer: Any) -> Any:
    return layer.output  # here


def test_access_out_of_order_in_a_function_that_a_block_calls(net):
    with pytest.raises(errors.OutOfOrderError) as caught:
        with net.trace(X):
            kept = net.second.output.save()
            read_late(net.first)
    assert_ends_here(caught.value, marked_line(read_late))
    assert kept.shape == X.shape


def test_error_in_a_comprehension(net):
    with pytest.raises(ZeroDivisionError) as caught:
        with net.trace(X):
            [layer.output / 1 // (1 // 0) for layer in (net.first, net.second)]  # here
    assert_ends_here(caught.value, marked_line(test_error_in_a_comprehension))


def test_error_in_an_invoke(gpt2):
    with pytest.raises(ZeroDivisionError) as caught:
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT):
                first = gpt2.transformer.h[0].output.save()
            with tracer.invoke(LONG):
                second = gpt2.transformer.h[1].output.save()
                1 // 0  # here
    assert_ends_here(caught.value, marked_line(test_error_in_an_invoke))
    assert (first.shape, second.shape) == ((1, 8, 16), (1, 8, 16))


def test_error_before_the_invokes(gpt2):
    with pytest.raises(ZeroDivisionError) as caught:
        with gpt2.trace() as tracer:
            kept = [1].save()
            1 // 0  # here
            with tracer.invoke(SHORT):
                gpt2.lm_head.output
    assert_ends_here(caught.value, marked_line(test_error_before_the_invokes))
    assert kept == [1]


def test_error_in_a_generation(gpt2):
    with pytest.raises(ZeroDivisionError) as caught:
        with gpt2.generate(SHORT, max_new_tokens=3, min_new_tokens=3) as tracer:
            seen = [].save()
            for step in tracer.iter[:]:
                seen.append(gpt2.lm_head.output[:, -1])
                1 // (1 - step)  # here
    assert_ends_here(caught.value, marked_line(test_error_in_a_generation))
    assert len(seen) == 2


def test_errors_that_are_chained_stay_chained(net):
    with pytest.raises(LookupError) as caught:
        with net.trace(X):
            try:
                1 // 0
            except ZeroDivisionError as error:
                net.first.output
                raise LookupError("other") from error  # here
    line = marked_line(test_errors_that_are_chained_stay_chained)
    assert_ends_here(caught.value, line)
    cause = caught.value.__cause__
    assert type(cause) is ZeroDivisionError
    assert traceback.extract_tb(cause.__traceback__)[-1].lineno == line - 3
    assert list(chain_of(caught.value)) == [caught.value, cause]


def test_error_around_a_trace_is_its_context(net):
    outer = LookupError("outer")
    with pytest.raises(ZeroDivisionError) as caught:
        try:
            raise outer
        except LookupError:
            with net.trace(X):
                net.first.output
                1 // 0  # here
    assert caught.value.__context__ is outer
    assert_ends_here(caught.value, marked_line(test_error_around_a_trace_is_its_context))


@pytest.mark.parametrize("kind", [StopIteration, KeyboardInterrupt, GeneratorExit, SystemExit])
def test_errors_that_python_treats_apart_keep_their_type(net, kind):
    with pytest.raises(kind) as caught:
        with net.trace(X):
            kept = net.first.output.save()
            raise kind(3)  # here
    assert type(caught.value) is kind and caught.value.args == (3,)
    line = marked_line(test_errors_that_python_treats_apart_keep_their_type)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].lineno == line
    assert kept.shape == X.shape


def test_error_that_is_caught_in_the_block(net):
    with net.trace(X):
        second = net.second.output.save()
        try:
            net.first.output
        except errors.OutOfOrderError as error:
            message = str(error).save()
        total = net.output.save()
    assert "already passed" in message
    assert torch.equal(second, total)


def test_error_of_the_model_keeps_its_type(net):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        with net.trace(torch.ones(2, 9)):
            kept = net.first.input.save()
            net.first.output
    assert type(caught.value) is RuntimeError
    names = files_in(caught.value)
    assert names[0] == __file__
    assert any("torch" in name for name in names)
    assert not [name for name in names if is_ours(name)]
    assert kept.shape == (2, 9)


def test_frames_of_ours_are_shown_on_demand(net, debug):
    with pytest.raises(ZeroDivisionError) as caught:
        with net.trace(X):
            net.first.output
            1 // 0
    assert [name for name in files_in(caught.value) if is_ours(name)]


def test_finally_runs_when_another_invoke_fails(gpt2):
    closed = []
    with pytest.raises(ZeroDivisionError):
        with gpt2.trace() as tracer:
            with tracer.invoke(SHORT):
                try:
                    gpt2.lm_head.output
                finally:
                    closed.append(1)
            with tracer.invoke(LONG):
                gpt2.transformer.h[0].output
                1 // 0
    assert closed == [1]


def test_a_trace_function_survives_a_failure(net):
    def trace(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(ZeroDivisionError):
            with net.trace(X):
                1 // 0
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is trace


# blocks that look as if they touched values only where they say so


def in_a_script(body: str, **names: Any) -> dict[str, Any]:
    text = "with net.trace(X) as tracer:\n" + "".join(f"    {x}\n" for x in body.splitlines())
    linecache.cache["<script>"] = (len(text), None, text.splitlines(True), "<script>")
    found = {"net": net, "X": X, "torch": torch, **names}
    exec(compile(text, "<script>", "exec"), found)
    return found


@pytest.mark.parametrize(
    "body",
    [
        "net.first.output, y = X * 0, 1",
        "if True: net.first.output = X * 0",
        "for i in range(1): net.first.output = X * 0",
        "net.first.output: torch.Tensor = X * 0",
        "for net.first.output in [X * 0]: pass",
        "net.get('first').output *= 0",
        "z = [y := layer.output.zero_() for layer in [net.first]]",
        "[net.first.output, *y] = X * 0, 1",
    ],
)
def test_a_block_is_not_taken_for_what_it_is_not(net, body):
    bias = net.second._module.bias
    left = in_a_script(f"{body}\nresult = net.second.output.save()", net=net)
    assert torch.equal(left["result"], bias.expand(2, 3))


def test_a_block_that_begins_with_try_runs_its_finally_once(net):
    seen = []
    with net.trace(X) as tracer:
        try:
            kept = net.first.output.save()
        finally:
            seen.append(net.second.output.shape)
    assert seen == [X.shape]
    assert kept.shape == X.shape


def test_a_block_that_begins_with_try_is_not_run_where_it_stands(net):
    seen = []
    with net.trace(X):
        try:
            seen.append(net.first.output.shape)
        except:  # noqa: E722
            seen.append("caught")
    assert seen == [X.shape]


def test_every_test_marks_at_most_one_line():
    tests = [value for value in globals().values() if isinstance(value, FunctionType)]
    for test in tests:
        if test.__module__ == __name__ and test.__name__.startswith("test_"):
            lines = inspect.getsource(test).splitlines()
            assert sum(line.endswith("  " + MARK) for line in lines) <= 1
