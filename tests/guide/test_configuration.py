"""Guide: Configuration, and the version notes."""

import subprocess
import sys

import pytest
import torch

from nnsight_dsl import NNsight
from nnsight_dsl.config import Config
from tests.models import assert_near, assert_same

EIFFEL = "The Eiffel Tower is in"
# as many tokens
BLANKS = "Tower Tower Tower Tower Tower"


# guide 96
def test_options(config):
    assert config.APP.CROSS_INVOKER is True
    assert config.APP.PYMOUNT is True

    config.APP.DEBUG = True
    config.APP.CROSS_INVOKER = False
    config.APP.PYMOUNT = False
    config.save()

    loaded = Config()
    assert loaded.APP.DEBUG is True
    assert loaded.APP.CROSS_INVOKER is False
    assert loaded.APP.PYMOUNT is False


# guide 96
def test_options_hold_in_the_next_process(config):
    config.APP.CROSS_INVOKER = False
    config.save()

    command = "from nnsight_dsl import CONFIG; print(CONFIG.APP.CROSS_INVOKER)"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# guide 96
def test_without_pymount_save_is_the_function(model, config):
    import nnsight_dsl

    # Issue 4: PYMOUNT is accepted.
    config.APP.PYMOUNT = False
    with model.trace("Hello"):
        hidden = nnsight_dsl.save(model.transformer.h[0].output)
    assert hidden.shape == (1, 3, 128)


# guide 97
def test_cross_invoker(model, plain):
    with model.trace() as tracer:
        with tracer.invoke(EIFFEL):
            embeddings = model.transformer.wte.output

        with tracer.invoke(BLANKS):
            model.transformer.wte.output = embeddings
            logits = model.lm_head.output.save()

    assert_near(logits, plain.logits(EIFFEL))


# guide 98
def test_isolated_invokes(model, config):
    config.APP.CROSS_INVOKER = False
    with pytest.raises(NameError, match="embeddings"):
        with model.trace() as tracer:
            with tracer.invoke(EIFFEL):
                embeddings = model.transformer.wte.output

            with tracer.invoke(BLANKS):
                model.transformer.wte.output = embeddings


# guide 99
def test_barrier(model, plain):
    llm = model
    with llm.trace() as tracer:
        barrier = tracer.barrier(2)

        with tracer.invoke(EIFFEL):
            paris_embeddings = llm.transformer.wte.output
            barrier()

        with tracer.invoke(BLANKS):
            barrier()
            llm.transformer.wte.output = paris_embeddings
            patched_output = llm.lm_head.output[:, -1].save()

    assert_near(patched_output, plain.logits(EIFFEL)[:, -1])


# guide 99
def test_without_the_barrier(model, plain):
    # The guide: it would fail. DESIGN.md, Automatic synchronisation: a read of a name that one
    # earlier invoke binds waits for the binding.
    llm = model
    with llm.trace() as tracer:
        with tracer.invoke(EIFFEL):
            paris_embeddings = llm.transformer.wte.output

        with tracer.invoke(BLANKS):
            llm.transformer.wte.output = paris_embeddings
            patched_output = llm.lm_head.output[:, -1].save()

    assert_near(patched_output, plain.logits(EIFFEL)[:, -1])


# guide 100
def test_wrapping_again():
    my_pytorch_model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    x = torch.ones(1, 3)
    expected = my_pytorch_model(x)

    model1 = NNsight(my_pytorch_model)
    model2 = NNsight(my_pytorch_model)

    with model1.trace(x):
        model1[0].output = model1[0].output + 1
        one = model1.output.save()
    with model2.trace(x):
        model2[0].output = model2[0].output + 1
        two = model2.output.save()
    with model1.trace(x):
        clean = model1.output.save()

    assert_same(one, my_pytorch_model[1](my_pytorch_model[0](x) + 1))
    assert_same(two, one)
    assert_same(clean, expected)
    # DESIGN.md, Runtime: a module outside of a run carries nothing of ours.
    assert not any(module._forward_hooks for module in my_pytorch_model.modules())


# guide notes
@pytest.mark.parametrize("name", ["list", "dict", "apply", "cond", "local", "trace"])
def test_deprecated_names(name):
    # Issue 4: under compat for 0.6 only, with a DeprecationWarning; 0.8 has removed them.
    import nnsight_dsl
    from nnsight_dsl import compat

    assert not hasattr(nnsight_dsl, name)
    compat.install("0.6")
    try:
        import nnsight

        arguments = (lambda: None,) if name in ("apply", "cond", "local", "trace") else ()
        with pytest.warns(DeprecationWarning, match=rf"nnsight\.{name} is deprecated"):
            try:
                getattr(nnsight, name)(*arguments)
            except NotImplementedError:
                assert name in ("cond", "local", "trace")
    finally:
        compat.uninstall()
