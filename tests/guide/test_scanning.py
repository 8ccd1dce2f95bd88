"""Guide: Scanning and Validation."""

import pytest

from nnsight_dsl import LanguageModel
from tests.guide.parts import FOLDER


# guide 43
def test_shapes(model):
    # Issue 4: shapes read in `scan` are usable after the block.
    with model.scan("Hello"):
        dim = model.transformer.h[0].output.shape[-1]

    assert dim == 128


# guide 43
def test_shapes_of_a_model_that_is_not_loaded():
    # Issue 4: also for a model that was never loaded.
    model = LanguageModel(str(FOLDER))
    with model.scan("Hello"):
        dim = model.transformer.h[0].output.shape[-1]

    assert dim == 128
    assert model.device.type == "meta"


# guide 43
def test_scan_runs_nothing(model):
    ran = []
    handle = model._module.lm_head.register_forward_hook(lambda _m, _a, out: ran.append(type(out)))
    try:
        with model.scan("Hello"):
            kind = type(model.lm_head.output)
    finally:
        handle.remove()
    assert [one.__name__ for one in ran] in ([], ["FakeTensor"])
    assert kind.__name__ == "FakeTensor"


# guide 44
def test_validation(model):
    with pytest.raises(IndexError, match="index 10 is out of bounds"):
        with model.scan("Hello"):
            model.transformer.h[0].output[:, 10] = 0


# guide 44
def test_validation_of_what_fits(model):
    with model.scan("The Eiffel Tower is in the city of, the Colosseum is in the city of"):
        model.transformer.h[0].output[:, 10] = 0
        shape = model.transformer.h[0].output.shape
    assert shape[1] >= 11
