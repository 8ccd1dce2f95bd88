"""What prints as a table is the same string in a notebook, in a terminal and in a file."""

from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nnsight_dsl import NNsight, layers_report
from nnsight_dsl.studies.explain import explain
from nnsight_dsl.transforms.live_frames import find_block
from tests import models
from tests.models import GPT2


class ZMQInteractiveShell(InteractiveShell):
    """A shell that rich takes for the one of Jupyter, which it knows by the name of its class."""


@pytest.fixture(scope="module")
def notebook() -> Iterator[InteractiveShell]:
    config = Config()
    config.HistoryManager.enabled = False
    shell = ZMQInteractiveShell(config=config, colors="nocolor")
    yield shell
    shell.restore_sys_module_state()


@pytest.fixture(scope="module")
def model() -> NNsight:
    return models.wrapped(GPT2)


SHOWN = {
    "the operations of a forward": "model.transformer.h[0].mlp.source",
    "an operation": "model.transformer.h[0].mlp.source.self_c_fc_0",
    "a report of layers": "layers_report(model, 'the cat sat')",
    "a plan": "plan_of(model)",
    "the states of a block": "explained(model)",
}


def plan_of(model: NNsight) -> object:
    with model.plan("the cat sat") as tracer:
        logits = model.lm_head.output.save()
    return tracer.plan()


def explained(model: NNsight) -> str:
    program = []

    class Finding:
        @property
        def __exit__(self):
            import sys

            program.append(find_block(sys._getframe(1)))
            return lambda *_: True

        def __enter__(self):
            raise KeyError

    try:
        with Finding():
            logits = model.lm_head.output
    except KeyError:
        pass
    return explain(program[0])


@pytest.mark.parametrize("conversion", ["str", "repr"])
@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN.keys())
def test_a_notebook_has_the_string_that_a_script_has(
    shown: str, conversion: str, notebook: InteractiveShell, model: NNsight
) -> None:
    names = {
        "model": model, "plan_of": plan_of, "layers_report": layers_report, "explained": explained
    }  # fmt: skip
    expected = eval(f"{conversion}({shown})", dict(names))
    notebook.user_ns.update(names)
    notebook.run_cell(
        "from rich.console import Console\n"
        "takes_it_for_jupyter = Console().is_jupyter\n"
        f"found = {conversion}({shown})"
    ).raise_error()
    assert notebook.user_ns["takes_it_for_jupyter"]
    assert expected.strip()
    assert notebook.user_ns["found"] == expected


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN.keys())
def test_an_environment_that_forces_colours_does_not_colour_strings(
    shown: str, model: NNsight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    names = {
        "model": model, "plan_of": plan_of, "layers_report": layers_report, "explained": explained
    }  # fmt: skip
    assert "\x1b" not in eval(f"str({shown})", names)
