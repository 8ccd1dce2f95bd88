"""At the entry of a run: what is certain is raised before the model runs, the rest is a warning."""

import linecache
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nnsight_dsl import CONFIG, LanguageModel, NNsight, errors, intervene
from nnsight_dsl.lint import at_run
from nnsight_dsl.lint.at_run import LintWarning
from tests import models
from tests.lint.test_models import Chain, DataDependent

PROMPT = "the cat"


@pytest.fixture(autouse=True)
def show_warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(at_run, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", LintWarning)
        yield


@pytest.fixture
def model() -> LanguageModel:
    return LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())


@pytest.fixture
def calls(model: LanguageModel) -> list[int]:
    """Grows when the model runs."""
    found: list[int] = []
    model._module.register_forward_pre_hook(lambda *_: found.append(1))
    return found


def run(text: str, **names: Any) -> dict[str, Any]:
    filename = f"<block {abs(hash(text)):x}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(compile(text, filename, "exec"), names)
    return names


CERTAIN = {
    "child-after-parent": (
        errors.OutOfOrderError,
        "NNS102",
        "with model.trace(PROMPT):\n"
        "    outer = model.transformer.h[0].output\n"
        "    inner = model.transformer.h[0].mlp.output\n",
    ),
    "input-after-output": (
        errors.OutOfOrderError,
        "NNS103",
        "with model.trace(PROMPT):\n"
        "    after = model.transformer.h[0].output\n"
        "    before = model.transformer.h[0].input\n",
    ),
    "by a name": (
        errors.OutOfOrderError,
        "NNS102",
        "layer = model.transformer.h[0]\nmlp = layer.mlp\n"
        "with model.trace(PROMPT):\n    outer = layer.output\n    inner = mlp.output\n",
    ),
    "skipped": (
        errors.NotCalledError,
        "NNS407",
        "with model.trace(PROMPT):\n"
        "    model.transformer.h[1].skip(model.transformer.h[0].output)\n"
        "    inner = model.transformer.h[1].mlp.output\n",
    ),
    "nested": (
        errors.InvokeError,
        "NNS402",
        "with model.trace() as tracer:\n"
        "    with tracer.invoke(PROMPT):\n        hidden = model.transformer.h[0].output\n"
        "        with tracer.invoke(PROMPT):\n            logits = model.lm_head.output\n",
    ),
    "after the steps": (
        errors.GenerationEndedError,
        "NNS105",
        "with model.generate(PROMPT, max_new_tokens=2) as tracer:\n"
        "    for step in tracer.iter[:]:\n        hidden = model.transformer.h[0].output\n"
        "    logits = model.lm_head.output\n",
    ),
    "after the result": (
        errors.OutOfOrderError,
        "NNS104",
        "with model.generate(PROMPT, max_new_tokens=2) as tracer:\n"
        "    tokens = tracer.result\n    logits = model.lm_head.output\n",
    ),
    "in a backward pass": (
        errors.GradientError,
        "NNS405",
        "with model.trace(PROMPT):\n    loss = model.lm_head.output.sum()\n"
        "    with loss.backward():\n        hidden = model.transformer.h[0].output\n",
    ),
    "in a session": (
        errors.OutOfOrderError,
        "NNS102",
        "with model.session():\n    with model.trace(PROMPT):\n"
        "        outer = model.transformer.h[0].output\n"
        "        inner = model.transformer.h[0].mlp.output\n",
    ),
}


def test_an_intervention_that_runs_alone_is_checked(model, calls):
    text = (
        "@intervene\n"
        "def inner(model, layer):\n"
        "    outer = model.transformer.h[layer].output\n"
        "    return model.transformer.h[layer].mlp.output\n\n"
        "@intervene\n"
        "def late(model):\n"
        "    outer = model.transformer.h[1].output\n"
        "    return model.transformer.h[1].input\n"
    )
    late = run(text, intervene=intervene)["late"]
    with pytest.raises(errors.OutOfOrderError, match="NNS103") as caught:
        late.run(model, PROMPT)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].lineno == 9
    assert calls == []


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_certain_is_raised_before_the_model_runs(name, model, calls, monkeypatch):
    kind, code, text = CERTAIN[name]
    line = 4 if name == "nested" else text.count("\n")
    with pytest.raises(kind) as caught:
        run(text, model=model, PROMPT=PROMPT)
    assert calls == []
    assert code in str(caught.value)
    seen, semicolon, advice = str(caught.value).partition("; ")
    assert seen and semicolon and advice
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (last.filename[:6], last.lineno) == ("<block", line)

    # the same error, from the run itself
    monkeypatch.setattr(CONFIG.APP, "LINT", "off")
    with pytest.raises(kind) as without:
        run(text, model=model, PROMPT=PROMPT)
    assert code not in str(without.value)
    assert type(without.value) is type(caught.value)
    last = traceback.extract_tb(without.value.__traceback__)[-1]
    assert last.lineno == line


def test_it_is_raised_each_time(model, calls):
    _, _, text = CERTAIN["child-after-parent"]
    for _ in range(2):
        with pytest.raises(errors.OutOfOrderError, match="NNS102"):
            run(text, model=model, PROMPT=PROMPT)
    assert calls == []


@pytest.mark.parametrize(
    "text",
    [
        "with model.trace(PROMPT):\n    outer = model.transformer.h[0].output\n"
        "    if False:\n        inner = model.transformer.h[0].mlp.output\n",
        "with model.trace(PROMPT):\n    outer = model.transformer.h[0].output\n    try:\n"
        "        inner = model.transformer.h[0].mlp.output\n    except ValueError:\n        pass\n",
        "with model.trace(PROMPT) as tracer:\n    outer = model.transformer.h[0].output\n"
        "    tracer.stop()\n    inner = model.transformer.h[0].mlp.output\n",
        "with model.trace(PROMPT):\n    outer = model.transformer.h[0].output\n"
        "    late = lambda: model.transformer.h[0].mlp.output\n",
        "class Box:\n    output = input = 1\n\nbox = Box()\n"
        "with model.trace(PROMPT):\n    one = box.output\n    two = box.input\n"
        "    hidden = model.transformer.h[0].output\n",
        "layer, other = model.transformer.h[0], model.transformer.h[1]\n"
        "with model.trace(PROMPT):\n    one = layer.output\n    layer = other\n"
        "    two = layer.mlp.output\n",
    ],
    ids=["branch", "try", "stopped", "later", "another object", "another layer"],
)
def test_what_is_not_certain_is_left_to_the_run(text, model, calls):
    run(text, model=model, PROMPT=PROMPT)
    assert calls


def test_a_name_that_means_another_module_is_no_finding(model):
    text = "with model.trace(PROMPT):\n    one = first.output\n    two = second.output\n"
    mlp, layer = model.transformer.h[0].mlp, model.transformer.h[0]
    run(text, model=model, PROMPT=PROMPT, first=mlp, second=layer)
    with pytest.raises(errors.OutOfOrderError, match="NNS102"):
        run(text, model=model, PROMPT=PROMPT, first=layer, second=mlp)


LATE = (
    "with model.trace(PROMPT):\n"
    "    late = model.transformer.h[2].output.save()\n"
    "    early = model.transformer.h[0].output.save()\n"
)


def test_the_order_of_the_first_run_warns(model):
    with pytest.raises(errors.OutOfOrderError):
        run(LATE, model=model, PROMPT=PROMPT)  # nothing is known of the order yet
    run("with model.trace(PROMPT):\n    y = model.lm_head.output\n", model=model, PROMPT=PROMPT)
    with pytest.warns(LintWarning, match=r"^NNS101: transformer.h.0.output has already passed"):
        with pytest.raises(errors.OutOfOrderError) as caught:
            run(LATE, model=model, PROMPT=PROMPT)
    assert "NNS101" not in str(caught.value)


def test_the_order_is_recorded_as_it_is(model):
    with model.trace(PROMPT):
        logits = model.lm_head.output.save()
    structure = at_run._structures[model._module]
    events, _ = visits(model)
    times = sorted(
        (time, what, path)
        for path, module in structure.modules.items()
        for begin, end in module.visits
        for time, what in ((begin, "begin"), (end, "end"))
    )
    assert [(what, path) for _, what, path in times] == events
    assert not any(type(module).__name__ == "Tap" for module in model._module.modules())


def visits(model: LanguageModel) -> Any:
    from tests.lint.test_models import visits_of

    return visits_of(models.new_gpt2(), **models.encoded(PROMPT))


def test_a_fake_run_of_this_call_is_enough_to_raise(model, calls):
    text = LATE.replace("(PROMPT)", "(PROMPT, validate=True)")
    with pytest.raises(errors.OutOfOrderError):
        run(text, model=model, PROMPT=PROMPT)


def test_a_fake_run_that_fails_says_nothing():
    wrapper = NNsight(DataDependent())
    with wrapper.trace(torch.ones(1, 2), validate=True):
        out = wrapper.layer.output.save()
    assert out.shape == (1, 2)


SAVED = (
    "with model.trace(PROMPT):\n"
    "    before = model.transformer.h[1].output.save()\n"
    "    model.transformer.h[1].output[:] = 0\n"
)


def test_what_misleads_warns_once(model):
    with pytest.warns(LintWarning, match=r"^NNS302: .*save a copy") as found:
        run(SAVED, model=model, PROMPT=PROMPT)
    assert [(one.filename[:6], one.lineno) for one in found] == [("<block", 2)]
    run(SAVED, model=model, PROMPT=PROMPT)


def test_comments_hold_here_too(model):
    run(SAVED.replace("save()", "save()  # noqa: NNS302"), model=model, PROMPT=PROMPT)
    _, _, text = CERTAIN["child-after-parent"]
    with pytest.raises(errors.OutOfOrderError) as caught:
        run(text.rstrip() + "  # noqa\n", model=model, PROMPT=PROMPT)
    assert "NNS102" not in str(caught.value)


def test_off_looks_at_nothing(model, unlinted, monkeypatch):
    monkeypatch.setattr(at_run, "check", None)
    run(SAVED, model=model, PROMPT=PROMPT)


def test_warn_raises_nothing_of_its_own(model, calls, monkeypatch):
    monkeypatch.setattr(CONFIG.APP, "LINT", "warn")
    _, _, text = CERTAIN["child-after-parent"]
    with pytest.warns(LintWarning, match="NNS102"):
        with pytest.raises(errors.OutOfOrderError) as caught:
            run(text, model=model, PROMPT=PROMPT)
    assert "NNS102" not in str(caught.value)
    assert calls


def test_the_setting_is_one_of_three_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="'of' is none"):
        CONFIG.APP.LINT = "of"
    assert CONFIG.APP.LINT == "error"
    monkeypatch.setattr(CONFIG.APP, "LINT", "warn")
    CONFIG.save()
    monkeypatch.setattr(CONFIG.APP, "LINT", "error")
    CONFIG.load()
    assert CONFIG.APP.LINT == "warn"


def test_a_program_is_checked_once_for_a_model(model, monkeypatch):
    checked = []
    check = at_run.check

    def counted(*args: Any, **kwargs: Any) -> Any:
        checked.append(1)
        return check(*args, **kwargs)

    monkeypatch.setattr(at_run, "check", counted)
    other = LanguageModel(models.new_gpt2(), tokenizer=models.tokenizer())

    def read(which):
        with which.trace(PROMPT):
            logits = which.lm_head.output.save()
        return logits

    read(model)
    read(model)
    count = len(checked)
    for _ in range(5):
        read(model)
    assert len(checked) == count <= 2
    read(other)
    assert len(checked) == count + 1


def test_names_that_leave_a_scan_are_no_finding():
    net = NNsight(Chain())
    with net.scan(torch.ones(1, 2)):
        shape = net.first.output
        shape = shape.shape
    assert shape == (1, 2)


def test_generations_record_one_step(model):
    with model.generate(PROMPT, max_new_tokens=3, min_new_tokens=3):
        logits = model.lm_head.output.save()
    structure = at_run._structures[model._module]
    assert len(structure.modules["lm_head"].visits) == 1


EDITED_COPY = (
    "with model.trace(PROMPT):\n"
    "    hidden = model.transformer.h[1].output.clone()\n"
    "    hidden[:] = 0\n"
    "    logits = model.lm_head.output.save()\n"
)


def test_an_edit_of_a_copy_that_nothing_reads_warns(model):
    with pytest.warns(LintWarning, match=r"^NNS305: 'hidden' is a copy"):
        run(EDITED_COPY, model=model, PROMPT=PROMPT)
    run(
        EDITED_COPY.replace("= 0", "= 0\n    model.transformer.h[1].output = hidden"),
        model=model,
        PROMPT=PROMPT,
    )


REBOUND = "with model.trace(PROMPT):\n    kept = model.transformer.h[1].output.sum()\n"
ADDED = "with model.trace(PROMPT):\n    kept += model.transformer.h[1].output.sum()\n"


@pytest.mark.parametrize(
    ("text", "before"),
    [(REBOUND, None), (REBOUND, 0), (REBOUND, torch.zeros(2)), (ADDED, 0), (ADDED, 0.5)],
)
def test_a_name_from_around_the_block_that_keeps_its_value_warns(model, text, before):
    with pytest.warns(LintWarning, match=r"^NNS301: 'kept' .* keeps the value from before"):
        names = run(text, model=model, PROMPT=PROMPT, kept=before)
    assert names["kept"] is before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (REBOUND, {}),
        (REBOUND.replace(".sum()", ".sum().save()"), {"kept": 0}),
        (REBOUND + "    out = (kept * 2).save()\n", {"kept": 0}),
        (REBOUND.replace("kept", "input"), {}),
        (REBOUND.replace("kept", "_"), {"_": 0}),
        (REBOUND + "    kept.save()\n", {"kept": 0}),
        (REBOUND + "    other = kept\n    other.save()\n", {"kept": 0}),
        (ADDED.replace(".sum()", ".sum().detach()"), {"kept": torch.zeros(())}),
    ],
)
def test_a_name_from_around_the_block_that_is_needed_or_kept_is_no_finding(model, text, names):
    run(text, model=model, PROMPT=PROMPT, **names)


def test_names_that_a_session_takes_from_a_trace_are_no_finding(model):
    text = (
        "kept = 0\n"
        "with model.session():\n"
        "    with model.trace(PROMPT):\n"
        "        kept = model.transformer.h[1].output.sum()\n"
        "    with model.trace(PROMPT):\n"
        "        out = (model.lm_head.output * kept).save()\n"
    )
    run(text, model=model, PROMPT=PROMPT)
