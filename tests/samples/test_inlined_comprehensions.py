"""Minimised failures of names that a comprehension beside a block has, too.

From Python 3.12 on a comprehension runs in the frame around it, so its variables stand among the
names of that frame; a global of the same name stays one all the same.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nnsight_dsl import NNsight

model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval())
X = torch.linspace(-1, 1, 8).reshape(2, 4)

AT_THE_TOP = '''
import sys
import torch
from tests.samples.test_inlined_comprehensions import X, model

first, whole = model._module[0], model._module
with model.trace(X):
    sums = [h.sum().item() for h in [model[0].output] for k in range(2)].save()
assert sums == [first(X).sum().item()] * 2
k = 5
for factor in (1, 2):
    with model.trace(X * factor):
        h = (model[0].output * k).save()
    assert torch.equal(h, first(X * factor) * 5)
squares = [n * n for n in range(3)]
with model.trace(X):
    n = model[1].output.save()
assert torch.equal(n, whole(X)) and squares == [0, 1, 4]
class Names:
    squares = [m * m for m in range(3)]
    for factor in (1, 2):
        with model.trace(X * factor):
            m = (model[1].output * factor).save()
        assert torch.equal(m, whole(X * factor) * factor)
        with model.trace(X):
            m = (model[1].output * m).save()
    if sys.gettrace() is None:
        exec("m = m.clone()")
assert torch.equal(Names.m, whole(X) * whole(X * 2) * 2)
for n in (1, 2):
    with model.trace(X):
        h = model[0].output.save()
    # a trace function of another tool takes the names as well
    if sys.gettrace() is None:
        exec("n = 5")
        assert n == 5 and locals() is globals()
print("done")
'''


HOW = {
    "plain": [],
    "lowered": ["-m", "nnsight_dsl", "run"],
    "traced": ["-m", "coverage", "run", "--data-file", os.devnull],
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_a_module_and_a_class_body(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(AT_THE_TOP)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *how, script], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


factor = 3.0
found = None


def test_a_function_reads_a_global():
    others = [factor for factor in (1.0, 2.0)]
    with model.trace(X):
        hidden = (model[0].output * factor).save()
    assert torch.equal(hidden, model._module[0](X) * 3.0)
    assert others == [1.0, 2.0]


def test_a_function_binds_a_global():
    global found
    others = [found for found in (1.0, 2.0)]
    with model.trace(X):
        found = model[0].output.save()
    assert torch.equal(found, model._module[0](X))
    assert found is globals()["found"]
    assert others == [1.0, 2.0]


def test_a_variable_that_a_closure_keeps():
    others = [lambda: factor for factor in (1.0, 2.0)]
    with model.trace(X):
        hidden = (model[0].output * factor).save()
    assert torch.equal(hidden, model._module[0](X) * 3.0)
    assert others[0]() == 2.0


def test_a_local_name_stays_local():
    factor = 2.0
    others = [factor for factor in (1.0, 4.0)]
    with model.trace(X):
        factor = model[0].output.sum().item() * factor
        factor = factor.save()
    assert factor == model._module[0](X).sum().item() * 2.0
    assert globals()["factor"] == 3.0
    assert others == [1.0, 4.0]
