"""Interrupts: minimal cases of Ctrl-C that was lost, or that left something behind."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from nnsight_dsl import NestedRunError, NNsight
from nnsight_dsl import intervene
from nnsight_dsl import sweep
from nnsight_dsl.runtime.tapping.tapped_class import taps_now
from tests.waiting import PATIENCE


class Timeout(BaseException):
    """What a time limit raises: pytest's own one is no Exception either."""


def stack() -> NNsight:
    return NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).eval())


X = torch.linspace(-1, 1, 4).reshape(1, 4)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Timeout])
@pytest.mark.parametrize("is_training", [False, True], ids=["rehearsal", "fake tensors"])
def test_an_interrupt_while_a_sweep_looks_at_its_programs_comes_out(kind, is_training):
    @intervene
    def scaled(model, k: float):
        hidden = model[1].output
        for interrupt in interrupts:
            raise interrupt
        model[1].output = hidden * k
        return model[2].output

    model = stack()
    model._module.train(is_training)
    interrupts = iter([kind()])
    with pytest.raises(kind):
        sweep(scaled, over={"k": [0.0, 1.0]}, model=model, prompt=X)
    # and it is not remembered as an answer
    found = sweep(scaled, over={"k": [0.0, 1.0]}, model=model, prompt=X)
    assert (found.form, found.reason) == ("shared", None)
    torch.testing.assert_close(found[1], model._module(X))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Timeout])
def test_an_interrupt_on_fake_tensors_comes_out_of_a_validated_trace(kind):
    model = stack()
    with pytest.raises(kind):
        with model.trace(X, validate=True):
            hidden = model[1].output
            if type(hidden).__name__ == "FakeTensor":
                raise kind()
            out = model[2].output.save()


def test_runs_of_families_that_are_merged_while_both_run_end_their_own_turns():
    first, second = stack(), stack()
    both_run, merged = threading.Barrier(3, timeout=PATIENCE), threading.Event()
    failures = []

    def work(model):
        try:
            with model.trace(X):
                model[0].output
                both_run.wait()
                merged.wait(PATIENCE)
                out = model[2].output.save()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in (first, second)]
    for thread in threads:
        thread.start()
    both_run.wait()
    both = NNsight(nn.Sequential(first._module, second._module))
    merged.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    for model in (first, second, both):
        with model.trace(X):
            out = model[0].output.save()
        assert torch.equal(out, model._module[0](X))


def test_a_run_of_the_whole_waits_for_runs_of_its_parts_that_began_before():
    first, second = stack(), stack()
    running, may_end = threading.Semaphore(0), threading.Event()
    under_way = []

    def part(model):
        with model.trace(X):
            model[0].output
            under_way.append(model)
            running.release()
            may_end.wait(PATIENCE)
            under_way.remove(model)
            model[2].output

    def whole():
        with both.trace(X):
            seen.append(len(under_way))
            both[0].output

    threads = [threading.Thread(target=part, args=(one,)) for one in (first, second)]
    for thread in threads:
        thread.start()
        running.acquire(timeout=PATIENCE)
    both = NNsight(nn.Sequential(first._module, second._module))
    seen = []
    last = threading.Thread(target=whole)
    last.start()
    may_end.set()
    for thread in (*threads, last):
        thread.join(PATIENCE)
    assert seen == [0]


def test_a_run_in_a_run_of_a_family_that_has_been_merged_is_an_error():
    first = stack()
    with pytest.raises(NestedRunError):
        with first.trace(X):
            first[0].output
            both = NNsight(nn.Sequential(first._module, nn.Linear(4, 4)))
            with both.trace(X):
                out = both[1].output.save()


def test_the_next_run_finishes_what_one_left_that_was_interrupted_twice(monkeypatch):
    model = stack()

    def interrupted(*_):
        raise KeyboardInterrupt

    def run():
        with model.trace(X):
            out = model[1].output.save()
        return out

    expected = run()
    with monkeypatch.context() as patched:
        # the second Ctrl-C comes while the first is dealt with, wherever that is
        patched.setattr("nnsight_dsl.runtime.tapping.kept_taps.Fixtures.remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert taps_now
    assert torch.equal(run(), expected)
    assert not taps_now
    assert [type(one) for one in model._module] == [nn.Linear] * 3


def test_an_interrupt_among_the_instructions_without_a_line_comes_out():
    def function():
        raise KeyboardInterrupt

    # as a function looks that is interrupted while it begins
    function.__code__ = function.__code__.replace(co_linetable=b"")
    model = stack()
    with model._module[1].register_forward_hook(lambda *_: function()):
        with pytest.raises(KeyboardInterrupt):
            with model.trace(X):
                out = model[2].output.save()


_SCAN = """
import signal
import sys
import torch
from nnsight_dsl import NNsight
from nnsight_dsl.blocks.import_hook import compile_module


class Failed(BaseException):
    pass


def fail(number, frame):
    raise Failed


def send(frame, event, arg):
    # C++ calls this function, and can hand no exception on from it
    if frame.f_code.co_name == "find_torch_dispatch_rule" and not sent:
        sent.append(event)
        signal.raise_signal(signal.SIGTERM)


sent = []
signal.signal(signal.SIGTERM, fail)
model = NNsight(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
x = torch.ones(1, 4)
text = "with model.trace(x, validate=True):\\n    out = model[1].output.save()\\n"
code = compile_module(text, "<a validated block>")
sys.settrace(send)
try:
    exec(code)
except Failed:
    print("came out")
sys.settrace(None)
print(sent, signal.getsignal(signal.SIGTERM) is fail)
exec(code)
print(torch.equal(out, model._module(x)), [type(one).__name__ for one in model._module.parameters()])
"""


def test_a_signal_inside_of_fake_tensors_comes_out_and_the_process_lives(tmp_path):
    script = tmp_path / "scan.py"
    script.write_text(_SCAN)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    parameters = ["Parameter"] * 4
    expected = ["came out", "['call'] True", f"True {parameters}"]
    assert done.stdout.splitlines() == expected, done.stderr
