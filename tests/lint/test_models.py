"""What is recorded of a model under fake tensors is what the real model does."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnsight_dsl.lint.models import structure_for
from nnsight_dsl.lint.recording import recorded
from nnsight_dsl.lint.settings import SettingsError
from tests import models
from tests.models import BERT, GPT2, LLAMA, Kind

ROOT = Path(__file__).resolve().parents[2]
CITY_FACTS = ROOT / "examples" / "models" / "city-facts"


def visits_of(module: nn.Module, **kwargs: Any) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The calls of all modules as hooks see them in a real run, and the first output of each."""
    events: list[tuple[str, str]] = []
    outputs: dict[str, Any] = {}

    def after(path: str, output: Any) -> None:
        events.append(("end", path))
        outputs.setdefault(path, output)

    handles = []
    for path, each in module.named_modules():
        handles.append(
            each.register_forward_pre_hook(lambda _m, _a, path=path: events.append(("begin", path)))
        )
        handles.append(
            each.register_forward_hook(lambda _m, _a, output, path=path: after(path, output))
        )
    with torch.no_grad():
        module(**kwargs)
    for handle in handles:
        handle.remove()
    return events, outputs


@pytest.mark.parametrize("kind", [GPT2, LLAMA, BERT], ids=lambda kind: kind.name)
def test_order_and_outputs_are_those_of_a_real_run(kind: Kind):
    structure = structure_for(f"tests.models:new_{kind.name}")
    assert structure.is_ordered
    events, outputs = visits_of(kind.new(), **models.encoded(models.LONG))
    times = sorted(
        (time, what, path)
        for path, module in structure.modules.items()
        for begin, end in module.visits
        for time, what in ((begin, "begin"), (end, "end"))
    )
    assert [(what, path) for _, what, path in times] == events
    for path, output in outputs.items():
        found = structure.modules[path].output
        assert found == ("tensor" if isinstance(output, torch.Tensor) else type(output).__name__)


def test_paths_are_those_of_the_model():
    structure = structure_for(str(CITY_FACTS))
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(CITY_FACTS)
    assert list(structure.modules) == [path for path, _ in module.named_modules()]
    assert structure.place(("transformer", "h", -1, "mlp")) == "transformer.h.5.mlp"
    assert structure.missing(("transformer", "h", 6)) == ("transformer.h", 6)
    assert structure.missing(("transformer", "h", 0, "mpl")) == ("transformer.h.0", "mpl")
    assert structure.missing(("transformer", "h", 0, "ln_1", "weight")) is None
    assert structure.near("transformer.h.0", "mpl") == ["mlp"]


class Chain(nn.Module):
    """The second layer uses the first one's output, and so does the third, which comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.third = nn.Linear(2, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.first(x)
        return self.third(self.second(hidden).relu()) + hidden[0]


def test_the_last_use_of_a_value_is_known():
    structure = recorded(Chain(), (torch.ones(1, 2),), {})
    by_path = structure.modules
    third = by_path["third"].visits[0]
    second = by_path["second"].last_use
    assert second is not None and third[0] > second > by_path["second"].visits[0][1]
    # through a view, after the third layer
    assert by_path["first"].last_use > third[1]
    assert by_path["third"].last_use > third[1]
    assert by_path["unused"].visits == () and by_path["unused"].output == ""
    assert by_path[""].last_use is None  # the caller has it


class Branching(nn.Module):
    """Takes one branch of two, as its second argument says."""

    def __init__(self, takes_first: bool) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.takes_first = takes_first

    def forward(self, x: torch.Tensor) -> Any:
        if self.takes_first:
            x = self.first(x)
        else:
            x = self.second(
                x,
            )
        return x


def test_operations_in_a_branch_that_does_not_run_are_known():
    both = nn.Sequential(Branching(True), Branching(False))
    modules = recorded(both, (torch.ones(1, 2),), {}).modules
    assert {"self_first_0", "self_second_0"} <= set(modules["0"].operations)
    assert "self_second_0" in modules["0"].idle and "self_first_0" not in modules["0"].idle
    assert "self_first_0" in modules["1"].idle and "self_second_0" not in modules["1"].idle


def test_the_trace_function_that_stood_before_a_recording_stands_after_it():
    def mine(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(mine)
    try:
        recorded(Chain(), (torch.ones(1, 2),), {})
        found = sys.gettrace()
    finally:
        sys.settrace(before)
    assert found is mine


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x) if x.sum() > 0 else x


def test_a_model_that_depends_on_values_is_known_by_its_modules_alone():
    structure = recorded(DataDependent(), (torch.ones(1, 2),), {})
    assert not structure.is_ordered
    assert structure.place(("layer",)) == "layer"
    assert structure.begins("layer") is None


def new_data_dependent() -> DataDependent:
    return DataDependent()


def test_a_model_whose_input_is_unknown_is_known_by_its_modules_alone():
    structure = structure_for("tests.lint.test_models:new_data_dependent")
    assert not structure.is_ordered
    assert set(structure.modules) == {"", "layer"}


def test_no_weights_are_loaded(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    assert structure_for(str(CITY_FACTS)).is_ordered


def test_what_was_recorded_is_kept(monkeypatch, cache):
    first = structure_for(str(CITY_FACTS))
    monkeypatch.setattr("nnsight_dsl.lint.building.recorded_config", None)
    again = structure_for(str(CITY_FACTS))
    assert (again.modules, again.is_ordered) == (first.modules, first.is_ordered)
    assert len(list((cache / "nnsight_dsl" / "models").iterdir())) == 1


def test_another_config_is_recorded_anew(tmp_path):
    text = (CITY_FACTS / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"n_layer": 6', '"n_layer": 2'))
    assert len(structure_for(str(CITY_FACTS)).modules["transformer.h"].children) == 6
    assert len(structure_for(str(tmp_path)).modules["transformer.h"].children) == 2


def test_what_was_kept_is_read_without_torch(tmp_path):
    script = (
        "import sys; from nnsight_dsl.lint.models import structure_for;"
        f"structure = structure_for({str(CITY_FACTS)!r});"
        "print(structure.is_ordered, {'torch', 'transformers'} & set(sys.modules))"
    )
    structure_for(str(CITY_FACTS))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "True set()"


def new_nothing() -> int:
    return 3


@pytest.mark.parametrize("folder", ["", "wrappers/deep"], ids=["modules", "package"])
def test_a_change_in_a_module_that_a_factory_imports_is_seen(monkeypatch, tmp_path, folder):
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    if folder:
        (tmp_path / "wrappers" / "__init__.py").touch()
        (place / "__init__.py").touch()
    begin = "wrappers.sizes" if folder else "sizes"
    sizes = tmp_path / f"{begin.replace('.', '/')}.py"
    (place / "factories.py").write_text(
        f"from torch import nn\nfrom {begin} import N\n\ndef new():\n"
        "    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(N)))\n"
    )
    name = f"{folder.replace('/', '.')}.factories" if folder else "factories"
    monkeypatch.syspath_prepend(str(tmp_path))
    for n in (2, 3):
        sizes.write_text(f"N = {n}\n")
        for module in [one for one in sys.modules if one in ("sizes", "factories")]:
            monkeypatch.delitem(sys.modules, module)
        for module in [one for one in sys.modules if one.startswith("wrappers")]:
            monkeypatch.delitem(sys.modules, module)
        importlib.invalidate_caches()
        assert len(structure_for(f"{name}:new").modules[""].children) == n


def test_a_factory_has_to_return_a_module():
    with pytest.raises(SettingsError, match="returned a int"):
        structure_for("tests.lint.test_models:new_nothing")
