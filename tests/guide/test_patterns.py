"""Guide: Common Patterns."""

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from nnsight_dsl import LanguageModel
from tests.guide.parts import FOLDER
from tests.models import assert_near, assert_same

EIFFEL = "The Eiffel Tower is in the city of"
COLOSSEUM = "The Colosseum is in the city of"


# guide 71
def test_activation_patching(model, plain):
    with model.trace() as tracer:
        with tracer.invoke(EIFFEL):
            clean_hs = model.transformer.h[4].output[:, -1, :].save()

        with tracer.invoke(COLOSSEUM):
            model.transformer.h[4].output[:, -1, :] = clean_hs
            patched_logits = model.lm_head.output.save()

    assert model.tokenizer.decode(plain.logits(COLOSSEUM)[0, -1].argmax()) == " Rome"
    assert model.tokenizer.decode(patched_logits[0, -1].argmax()) == " Paris"
    assert_near(clean_hs, plain.output("transformer.h.4", EIFFEL)[:, -1, :])


# guide 72
def test_logit_lens(model, plain, capsys):
    with model.trace(EIFFEL):
        for i in range(6):
            hs = model.transformer.h[i].output
            logits = model.lm_head(model.transformer.ln_f(hs))
            tokens = logits.argmax(dim=-1).save()
            print(f"Layer {i}:", model.tokenizer.decode(tokens[0][-1]))

    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    # from layer 2 on, says the model's own page
    assert printed[2:] == [f"Layer {i}:  Paris" for i in range(2, 6)]
    module = plain.module
    with torch.no_grad():
        lens = module.lm_head(module.transformer.ln_f(plain.output("transformer.h.5", EIFFEL)))
    assert_same(tokens, lens.argmax(dim=-1))


# guide 72
def test_a_module_that_is_called_in_a_block_fires_nothing(model, plain):
    # The guide: it uses `.forward()`, "bypassing interleaving hooks".
    with model.trace(EIFFEL):
        early = model.lm_head(model.transformer.ln_f(model.transformer.h[0].output)).save()
        norm = model.transformer.ln_f.output.save()
        logits = model.lm_head.output.save()

    assert not torch.equal(early, logits)
    assert_same(norm, plain.output("transformer.ln_f", EIFFEL))
    assert_same(logits, plain.logits(EIFFEL))


class SAE(nn.Module):
    """A sparse autoencoder with random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(128, 16)
        self.decoder = nn.Linear(16, 128)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(hidden).relu())


def _with_sae(plain):
    module = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    module.sae = SAE()
    return LanguageModel(module, tokenizer=plain.tokenizer)


# guide 73
def test_auxiliary_module(plain):
    model = _with_sae(plain)
    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            hidden = model.transformer.h[4].output.clone().save()
            reconstructed = model.sae(hidden, hook=True).save()
            model.transformer.h[4].output = reconstructed
            logits = model.lm_head.output.save()

        with tracer.invoke("Hello"):
            sae_activations = model.sae.output.save()

    # DESIGN.md, Rows: values of `hook=True` calls are offered whole.
    assert_same(sae_activations, reconstructed)
    sae = model.sae._module
    assert_same(reconstructed, sae(hidden))
    with plain.hooked("transformer.h.4", sae):
        assert_near(logits, plain.logits("Hello"))


# guide 73
def test_auxiliary_module_in_a_single_invoke(plain):
    model = _with_sae(plain)
    with model.trace("Hello"):
        hidden = model.transformer.h[4].output
        model.transformer.h[4].output = model.sae(hidden, hook=True)
        logits = model.lm_head.output.save()

    with plain.hooked("transformer.h.4", model.sae._module):
        assert_near(logits, plain.logits("Hello"))


# guide 74
def test_ablation(model, plain):
    with model.trace() as tracer:
        with tracer.invoke("Hello World"):
            baseline = model.lm_head.output[:, -1].save()

        with tracer.invoke("Hello World"):
            model.transformer.h[5].mlp.output[:] = 0
            ablated = model.lm_head.output[:, -1].save()

    diff = (baseline - ablated).abs().mean()
    assert diff > 0
    assert_near(baseline, plain.logits("Hello World")[:, -1])
    with plain.hooked("transformer.h.5.mlp", torch.zeros_like):
        assert_near(ablated, plain.logits("Hello World")[:, -1])


# guide 76
def test_steering(model, plain):
    steering_vector = torch.linspace(-1, 1, 128)

    with model.trace("Hello"):
        model.transformer.h[4].output[:, -1, :] += steering_vector * 0.5
        output = model.lm_head.output.save()

    def change(value):
        new = value.clone()
        new[:, -1, :] += steering_vector * 0.5
        return new

    with plain.hooked("transformer.h.4", change):
        assert_same(output, plain.logits("Hello"))
