"""Sessions: several traces in one block."""

import pytest
import torch

from nnsight_dsl import NNsight, errors
from tests.models import assert_same
from tests.runtime.conftest import Stack


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Stack().requires_grad_(False)


@pytest.fixture
def model(module):
    return NNsight(module)


@pytest.fixture
def x(module):
    return torch.randn(2, module.layers[0].in_features)


def test_a_value_flows_to_the_next_trace_without_being_saved(model, module, x):
    with model.session():
        with model.trace(x):
            hidden = model.layers[1].output
        with model.trace(x * 2):
            model.layers[1].output[:] = hidden
            result = model.output.save()
    assert_same(result, module(x))
    with pytest.raises(NameError):
        hidden


def test_traces_stand_in_loops_and_under_conditions(model, module, x):
    with model.session():
        found = [].save()
        for factor in (1, 2, 3):
            if factor != 2:
                with model.trace(x * factor):
                    found.append(model.output)
    assert_same(found, [module(x), module(x * 3)])


def test_a_list_saved_across_traces_holds_all(model, module, x):
    with model.session():
        found = [].save()
        with model.trace(x):
            found.append(model.layers[0].output)
        with model.trace(x):
            found.append(model.layers[2].output)
    assert len(found) == 2
    assert_same(found[0], module.layers[0](x))


def test_a_session_stands_at_module_level(model, module, x, tmp_path):
    script = tmp_path / "session.py"
    script.write_text(
        "with model.session():\n"
        "    with model.trace(x) as tracer:\n"
        "        hidden = model.layers[1].output\n"
        "    norm = hidden.norm().save()\n"
    )
    namespace = {"model": model, "x": x, "__name__": "session"}
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    assert_same(namespace["norm"], module.layers[1](module.layers[0](x)).norm())
    assert "hidden" not in namespace


def test_an_error_in_a_trace_of_a_session_ends_at_its_line(model, x):
    with pytest.raises(errors.OutOfOrderError) as caught:
        with model.session():
            with model.trace(x):
                late = model.layers[2].output
                early = model.layers[0].output
    last = caught.traceback[-1]
    first = test_an_error_in_a_trace_of_a_session_ends_at_its_line.__code__.co_firstlineno
    assert last.lineno + 1 == first + 5


def test_a_session_of_another_library_in_a_block_keeps_its_meaning(model, module, x):
    class Database:
        def session(self):
            return self

        def __enter__(self):
            return "rows"

        def __exit__(self, *error):
            return False

    with model.trace(x):
        with Database().session() as rows:
            hidden = model.layers[0].output.save()
            seen = (rows + "!").save()
    assert seen == "rows!"
    assert_same(hidden, module.layers[0](x))
