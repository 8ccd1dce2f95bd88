"""Minimised failures of carried calls: an error of torch's own on a stack of its own."""

import subprocess
import sys

# In a process of its own, since what is tested ends the process. The errors come from C++, where
# each records the stack that it is raised on; they are raised at several depths.
SCRIPT = '''
import torch
from torch import nn
from nnsight_dsl import NNsight

model = NNsight(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
caught = []

def fail(depth, layer):
    if depth:
        return sorted([depth], key=lambda _: fail(depth - 1, layer))
    hidden = layer.output
    try:
        hidden @ torch.ones(3, 3)
    except RuntimeError as error:
        caught.append(str(error))
    return hidden

for depth in (0, 1, 3, 8):
    with model.trace(torch.ones(2, 4)):
        fail(depth, model[0])
        try:
            model[1].output.reshape(3, 5)
        except RuntimeError as error:
            caught.append(str(error))
print(len(caught))
'''


def test_an_error_of_torch_in_a_carried_call_is_caught():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
