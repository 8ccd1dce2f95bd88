"""Guide: Debugging Tips."""

import sys

import pytest

from nnsight_dsl import CONFIG


# guide 90
def test_print(model, plain, capsys):
    with model.trace("Hello"):
        out = model.transformer.h[0].output
        print("Shape:", out.shape)
        print("Mean:", out.mean().item())

    mean = plain.output("transformer.h.0", "Hello").mean().item()
    assert capsys.readouterr().out == f"Shape: torch.Size([1, 3, 128])\nMean: {mean}\n"


# guide 91
def test_breakpoint(model, monkeypatch):
    stops = []

    def stop():
        frame = sys._getframe(1)
        stops.append((frame.f_code.co_filename, frame.f_lineno, frame.f_locals["out"].shape))

    monkeypatch.setattr(sys, "breakpointhook", stop)
    first = sys._getframe().f_lineno
    with model.trace("Hello"):
        out = model.transformer.h[0].output
        breakpoint()

    assert stops == [(__file__, first + 3, (1, 3, 128))]


# guide 92
def test_scan_and_validate(model):
    ran = []
    handle = model._module.lm_head.register_forward_hook(lambda _m, _a, out: ran.append(type(out)))
    try:
        with pytest.raises(IndexError, match="index 1000 is out of bounds"):
            with model.trace("Hello", scan=True, validate=True):
                model.transformer.h[0].output[:, 1000] = 0
    finally:
        handle.remove()
    assert ran == []


# guide 92
def test_scan_and_validate_of_what_fits(model):
    with model.trace("Hello", scan=True, validate=True):
        model.transformer.h[0].output[:, 2] = 0
        output = model.transformer.h[0].output.save()
    assert not output[:, 2].any()
    assert output[:, 1].any()


# guide 93
def test_structure(model, capsys):
    print(model)
    whole = capsys.readouterr().out
    print(model.transformer.h[0])
    layer = capsys.readouterr().out

    assert whole == f"{model._module}\n"
    assert layer == f"{model._module.transformer.h[0]}\n"


# guide 94
def test_shapes_with_scan(model, capsys):
    with model.scan("Hello"):
        print(model.transformer.h[0].output.shape)
        print(model.lm_head.output.shape)

    vocabulary = model.config.vocab_size
    expected = f"torch.Size([1, 3, 128])\ntorch.Size([1, 3, {vocabulary}])\n"
    assert capsys.readouterr().out == expected


# guide 95
def test_debug_is_saved(config):
    import nnsight_dsl

    nnsight_dsl.CONFIG.APP.DEBUG = True
    nnsight_dsl.CONFIG.save()

    CONFIG.APP.DEBUG = False
    CONFIG.load()
    assert CONFIG.APP.DEBUG is True
