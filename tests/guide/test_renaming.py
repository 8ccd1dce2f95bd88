"""Guide: Module Renaming."""

from nnsight_dsl import LanguageModel
from tests.guide.parts import FOLDER
from tests.models import assert_same

RENAME = {
    "transformer.h": "layers",
    "mlp": "feedforward",
    ".transformer": ["model", "backbone"],
}


# guide 70
def test_aliases():
    model = LanguageModel(str(FOLDER), rename=RENAME)

    with model.trace("Hello"):
        out1 = model.layers[0].feedforward.output.save()
        out2 = model.transformer.h[0].mlp.output.save()

    assert_same(out1, out2)
    assert out1 is out2


# guide 70
def test_several_aliases(plain):
    model = LanguageModel(str(FOLDER), rename=RENAME)

    with model.trace("Hello"):
        out0 = model.model.h[0].output.save()
        out1 = model.backbone.h[1].output.save()
        out2 = model.layers[2].feedforward.output.save()

    assert_same(out0, plain.output("transformer.h.0", "Hello"))
    assert_same(out1, plain.output("transformer.h.1", "Hello"))
    assert_same(out2, plain.output("transformer.h.2.mlp", "Hello"))


# guide 70
def test_an_edit_by_alias():
    model = LanguageModel(str(FOLDER), rename=RENAME)

    with model.trace("Hello"):
        model.layers[0].feedforward.output[:] = 0
        out = model.transformer.h[0].mlp.output.save()

    assert not out.any()


# guide 70
def test_a_cache_by_alias():
    model = LanguageModel(str(FOLDER), rename=RENAME)

    with model.trace("Hello") as tracer:
        cache = tracer.cache()

    out = cache["model.transformer.h.0.mlp"].output
    assert cache["model.layers.0.feedforward"].output is out
    assert cache.model.layers[0].feedforward.output is out
    assert cache.model.backbone.h[0].mlp.output is out
