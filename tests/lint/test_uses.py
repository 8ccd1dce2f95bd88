"""Edits that come too late, at the entry of a run: NNS304 for models of transformers."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from nnsight_dsl import LanguageModel, NNsight
from nnsight_dsl.lint import at_run
from nnsight_dsl.lint.at_run import LintWarning
from nnsight_dsl.lint.uses import structure_with_uses
from tests import models
from tests.lint.test_at_run import run
from tests.lint.test_models import Chain

PROMPT = "the cat sat"
LATE = (
    "with model.trace(PROMPT):\n"
    "    hidden = model.transformer.h[0].mlp.c_fc.output\n"
    "    logits = model.lm_head.output.save()\n"
    "    hidden[:] = 0\n"
)


@pytest.fixture(autouse=True)
def show_warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(at_run, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", LintWarning)
        yield


@pytest.fixture
def module() -> torch.nn.Module:
    return models.new_gpt2()


@pytest.fixture
def model(module: torch.nn.Module) -> LanguageModel:
    return LanguageModel(module, tokenizer=models.tokenizer())


def test_an_edit_behind_the_last_use_warns_before_the_first_run(model, module):
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(len(calls)))
    with pytest.warns(
        LintWarning, match=r"^NNS304: everything that uses transformer.h.0.mlp.c_fc"
    ) as found:
        names = run(LATE, model=model, PROMPT=PROMPT)
    assert [one.lineno for one in found] == [4]
    # it is true: the logits are those of the plain model, which was called by the run alone
    assert calls == [0]
    assert torch.equal(names["logits"], module(**models.encoded(PROMPT)).logits)


def test_it_warns_in_a_function_and_a_generation(model):
    text = (
        "def zero(model):\n"
        "    with model.generate(PROMPT, max_new_tokens=2) as tracer:\n"
        "        hidden = model.transformer.h[1].mlp.output\n"
        "        logits = model.lm_head.output.save()\n"
        "        hidden *= 0\n"
        "zero(model)\n"
    )
    with pytest.warns(LintWarning, match=r"^NNS304: .*transformer.h.1.mlp"):
        run(text, model=model, PROMPT=PROMPT)


@pytest.mark.parametrize(
    "text",
    [
        # in time
        LATE.replace("    logits", "    hidden[:] = 0\n    logits").removesuffix(
            "    hidden[:] = 0\n"
        ),
        # read again
        LATE + "    kept = (hidden + 1).save()\n",
        # what the attention is added to afterwards
        LATE.replace("h[0].mlp.c_fc", "h[0]").replace("lm_head", "transformer.h[1].attn.c_proj"),
        # what the model returns is used by who called it
        LATE.replace("transformer.h[0].mlp.c_fc", "lm_head").replace(
            "lm_head.output.save", "output.logits.save"
        ),
        LATE.replace("= 0\n", "= 0  # noqa: NNS304\n"),
    ],
)
def test_no_false_alarm(model, text):
    run(text, model=model, PROMPT=PROMPT)


def test_a_module_of_the_users_is_never_called_for_it(module):
    chain = Chain()
    text = (
        "with model.trace(x):\n"
        "    hidden = model.first.output\n"
        "    out = model.output.save()\n"
        "    hidden[:] = 0\n"
    )
    run(text, model=NNsight(chain), x=torch.ones(1, 2))
    assert structure_with_uses(chain) is None
    module.transformer.h[0].mlp = torch.nn.Identity()
    assert structure_with_uses(module) is None
