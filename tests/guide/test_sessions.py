"""Guide: Sessions."""

import pytest

from tests.models import assert_same

EIFFEL = "The Eiffel Tower is in the city of"
COLOSSEUM = "The Colosseum is in the city of"
TWO = "Tower Tower"


# guide 68
def test_values_between_traces(model, plain):
    # prompts of one length, since all positions are written
    with model.session() as session:
        with model.trace(TWO):
            hs1 = model.transformer.h[0].output.save()

        with model.trace("Test"):
            model.transformer.h[0].output[:] = hs1
            hs2 = model.transformer.h[0].output.save()
            logits = model.lm_head.output.save()

    assert_same(hs1, plain.output("transformer.h.0", TWO))
    assert_same(hs2, hs1)
    assert_same(logits, plain.logits(TWO))


# guide 69
def test_patching_in_a_session(model, plain):
    # The sample's text without remote=True; city-facts knows landmarks, not athletes.
    with model.session():
        with model.trace(EIFFEL):
            hs = model.transformer.h[4].output[:, -1, :]

        with model.trace(COLOSSEUM):
            clean = model.lm_head.output[0][-1].argmax(dim=-1).save()

        with model.trace(COLOSSEUM):
            model.transformer.h[4].output[:, -1, :] = hs
            patched = model.lm_head.output[0][-1].argmax(dim=-1).save()

    assert model.tokenizer.decode(clean) == " Rome"
    assert model.tokenizer.decode(patched) == " Paris"


# guide 69
def test_a_remote_session_is_refused(model):
    # Issue 4: `remote=True` raises NotImplementedError until remote execution is built.
    with pytest.raises(NotImplementedError, match="remote"):
        with model.session(remote=True):
            with model.trace(EIFFEL):
                hs = model.transformer.h[4].output[:, -1, :]


# guide 69
def test_a_remote_trace_is_refused(model):
    with pytest.raises(NotImplementedError, match="remote"):
        with model.trace(EIFFEL, remote=True):
            logits = model.lm_head.output.save()
