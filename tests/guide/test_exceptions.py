"""Guide: Understanding Exceptions in NNsight."""

import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from nnsight_dsl import LanguageModel, NNsight, OutOfOrderError
from tests.guide.parts import FOLDER

ROOT = Path(__file__).resolve().parents[2]
OURS = ("nnsight_dsl", "runtime", "transforms")
SCRIPT = """from nnsight_dsl import LanguageModel

model = LanguageModel({folder!r}, dispatch=True)

with model.trace("Hello"):
    hidden = model.transformer.h[100].output.save()
"""


def _own_frames(error):
    """The frames of the library in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return [
        frame for frame in frames if any(str(ROOT / part) + "/" in frame.filename for part in OURS)
    ]


# guide 88
def test_the_type_is_kept(model, capsys):
    try:
        with model.trace("Hello"):
            hidden = model.transformer.h[100].output.save()
    except IndexError:
        print("Caught the IndexError!")

    assert capsys.readouterr().out == "Caught the IndexError!\n"


# guide 88
def test_the_line_is_the_users(model):
    with pytest.raises(IndexError) as caught:
        with model.trace("Hello"):
            hidden = model.transformer.h[100].output.save()

    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert last.filename == __file__
    assert last.line == "hidden = model.transformer.h[100].output.save()"
    assert _own_frames(caught.value) == []


# guide 88
def test_the_line_in_a_script(tmp_path):
    script = tmp_path / "my_experiment.py"
    script.write_text(SCRIPT.format(folder=str(FOLDER)), encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert f'File "{script}", line 6, in <module>\n    hidden = model.tr' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("IndexError: ")
    assert str(ROOT / "nnsight_dsl") not in done.stderr
    assert str(ROOT / "runtime") not in done.stderr


# guide 89
def test_debug_shows_all_frames(model, config):
    config.APP.DEBUG = True
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace("Hello"):
            late = model.transformer.h[5].output
            early = model.transformer.h[1].output

    assert _own_frames(caught.value)


# guide 89
def test_without_debug_no_frame_of_the_library_shows(model):
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace("Hello"):
            late = model.transformer.h[5].output
            early = model.transformer.h[1].output

    assert _own_frames(caught.value) == []


# The table "Common Exceptions", row by row.


# guide table
def test_out_of_order(model):
    with pytest.raises(OutOfOrderError):
        with model.trace("Hello"):
            late = model.transformer.h[5].output
            early = model.transformer.h[1].output


# guide table
def test_never_called():
    class Unused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used = torch.nn.Linear(2, 2)
            self.unused = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    model = NNsight(Unused())
    with pytest.raises(ValueError, match="unused"):
        with model.trace(torch.ones(1, 2)):
            value = model.unused.output.save()


# guide table
def test_gradients_in_the_wrong_order(model):
    with pytest.raises(ValueError):
        with model.trace("Hello"):
            early = model.transformer.h[1].output
            late = model.transformer.h[4].output
            with model.lm_head.output.sum().backward():
                early_grad = early.grad
                late_grad = late.grad


# guide table
def test_no_run(model):
    with pytest.raises(ValueError):
        model.transformer.h[0].output


# guide table
def test_nested_invokes(model):
    with pytest.raises(ValueError):
        with model.trace() as tracer:
            with tracer.invoke("Hello"):
                with tracer.invoke("World"):
                    output = model.lm_head.output.save()


# guide table
def test_output_inside_backward(model):
    with pytest.raises(ValueError, match="Cannot request"):
        with model.trace("Hello"):
            loss = model.lm_head.output.sum()
            with loss.backward():
                hidden = model.transformer.h[0].output


# guide table
def test_no_such_module(model):
    with pytest.raises(AttributeError, match=r"print\(model\)"):
        with model.trace("Hello"):
            output = model.transformer.nonexistent.output.save()


# guide table
def test_no_tokenizer(model):
    bare = LanguageModel(model._module)
    with pytest.raises(AttributeError, match=r"(?i)tokenizer"):
        with bare.trace("Hello"):
            output = bare.output.save()


# guide table
def test_several_inputs_of_a_base_model():
    model = NNsight(torch.nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match=r"(?i)batch"):
        with model.trace() as tracer:
            with tracer.invoke(torch.ones(1, 2)):
                one = model.output.save()
            with tracer.invoke(torch.ones(1, 2)):
                two = model.output.save()
