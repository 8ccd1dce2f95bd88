"""Guide: Batching with Invokers."""

import pytest
import torch

from nnsight_dsl import BarrierError
from tests.models import assert_near, assert_same

# As many tokens as "The Eiffel Tower is in" and its like have: the samples swap embeddings.
BLANKS_5 = "Tower Tower Tower Tower Tower"
BLANKS_11 = " ".join(["Tower"] * 11)
MADISON = "Madison Square Garden is in the city of"


@pytest.fixture(autouse=True)
def same_length(model):
    count = lambda text: len(model.tokenizer(text).input_ids)  # noqa: E731
    assert count("The Eiffel Tower is in") == count(BLANKS_5)
    assert count(MADISON) == count(BLANKS_11)


# guide 22
def test_embeddings_across_invokes(model, plain):
    with model.trace() as tracer:
        with tracer.invoke("The Eiffel Tower is in"):
            embeddings = model.transformer.wte.output
            output1 = model.lm_head.output.save()

        with tracer.invoke(BLANKS_5):
            model.transformer.wte.output = embeddings
            output2 = model.lm_head.output.save()

    # with the other's embeddings the second prompt is the first
    assert_near(output1, plain.logits("The Eiffel Tower is in"))
    assert_near(output2, output1)


# guide 23
def test_promptless_for_the_whole_batch(model, plain):
    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            pass

        with tracer.invoke("World"):
            pass

        with tracer.invoke():
            all_outputs = model.lm_head.output.save()

    assert all_outputs.shape == (2, 4, model.config.vocab_size)
    assert_near(all_outputs[0, -1], plain.logits("Hello")[0, -1])
    assert_near(all_outputs[1], plain.logits("World")[0])


# guide 24
def test_barrier(model, plain):
    with model.generate(max_new_tokens=3) as tracer:
        barrier = tracer.barrier(2)

        with tracer.invoke(MADISON):
            embeddings = model.transformer.wte.output
            barrier()
            output1 = model.generator.output.save()

        with tracer.invoke(BLANKS_11):
            barrier()
            model.transformer.wte.output = embeddings
            output2 = model.generator.output.save()

    assert_same(output1, plain.generate(MADISON, 3))
    # the prompt is its own, the answer's first token is that of the other's embeddings
    assert output2[0, 11] == output1[0, 11]
    assert not torch.equal(output2[0, :11], output1[0, :11])


# guide 24
def test_misused_barrier(model):
    # Issue 4: misuse of a barrier is an error at once.
    with pytest.raises(BarrierError):
        with model.trace() as tracer:
            barrier = tracer.barrier(3)
            with tracer.invoke("Hello"):
                barrier()
            with tracer.invoke("World"):
                barrier()


# guide 25
def test_several_prompts_in_one_invoke(model, plain):
    with model.trace() as tracer:
        with tracer.invoke("Hello"):
            out1 = model.lm_head.output[:, -1].save()

        with tracer.invoke(["Hello", "World"]):
            out2 = model.lm_head.output[:, -1].save()

    vocabulary = model.config.vocab_size
    assert out1.shape == (1, vocabulary)
    assert out2.shape == (2, vocabulary)
    # Issue 4: a padded batch gives each prompt what it gives alone, within tolerance.
    assert_near(out1, plain.logits("Hello")[:, -1])
    assert_near(out2[:1], plain.logits("Hello")[:, -1])
    assert_near(out2[1:], plain.logits("World")[:, -1])
