"""What a block reads is what a hand-written hook is given."""

import pytest
import torch
from torch import nn

from nnsight_dsl import LanguageModel, NNsight, OutOfOrderError
from tests import models
from tests.models import BERT, GPT2, LLAMA, LONG, SHORT, Kind, assert_same, bare, encoded


def test_every_output_is_what_a_forward_hook_is_given(kind: Kind, model: LanguageModel) -> None:
    with models.recorded(bare(kind)) as expected:
        bare(kind)(**encoded(LONG))
    paths = list(expected)
    with model.trace(LONG):
        seen = {path: model.get(path).output for path in paths}.save()
    assert len(paths) > 30
    for path in paths:
        assert_same(seen[path], expected[path][0])


def test_every_inputs_is_what_a_pre_hook_is_given(kind: Kind, model: LanguageModel) -> None:
    expected = {}

    def keep(path):
        # a list of its own: the caller may change its keywords later
        return lambda args, kwargs: expected.setdefault(path, (args, dict(kwargs))) and None

    before = {path: keep(path) for path, _ in bare(kind).named_modules()}
    with models.hooked(bare(kind), before=before):
        bare(kind)(**encoded(LONG))
    with model.trace(LONG):
        seen = {path: model.get(path).inputs for path in expected}.save()
    assert len(expected) > 30
    for path, (args, kwargs) in expected.items():
        assert_same(seen[path][0], args)
        assert_same(dict(seen[path][1]), kwargs)


def test_input_is_the_first_positional_argument(kind: Kind, model: LanguageModel) -> None:
    expected = models.output_of(kind, LONG, kind.layer(0))
    with model.trace(LONG):
        seen = model.get(kind.layer(1)).input.save()
    assert_same(seen, expected)


def test_input_of_a_call_with_keywords_only_is_the_first_of_them(llama: LanguageModel) -> None:
    expected = models.output_of(LLAMA, LONG, "model.layers.1.input_layernorm")
    with llama.trace(LONG):
        seen = llama.model.layers[1].self_attn.input.save()
    assert_same(seen, expected)


def test_input_of_the_root_is_the_token_ids(kind: Kind, model: LanguageModel) -> None:
    with model.trace(LONG):
        seen = model.input.save()
    assert_same(seen, models.token_ids(LONG))


def test_input_of_the_bert_embeddings_is_the_token_ids(bert: LanguageModel) -> None:
    with bert.trace(LONG):
        seen = bert.bert.embeddings.input.save()
    assert_same(seen, models.token_ids(LONG))


def test_static_paths_read_what_hooks_are_given_in_gpt2(gpt2: LanguageModel) -> None:
    with models.recorded(bare(GPT2)) as expected:
        bare(GPT2)(**encoded(LONG))
    with gpt2.trace(LONG):
        embedded = gpt2.transformer.wte.output.save()
        attention = gpt2.transformer.h[0].attn.output.save()
        mlp = gpt2.transformer.h[-2].mlp.output.save()
        hidden = gpt2.transformer.h[2].output.save()
        logits = gpt2.lm_head.output.save()
    assert_same(embedded, expected["transformer.wte"][0])
    assert_same(attention, expected["transformer.h.0.attn"][0])
    assert_same(mlp, expected["transformer.h.1.mlp"][0])
    assert_same(hidden, expected["transformer.h.2"][0])
    assert_same(logits, expected["lm_head"][0])


def test_a_submodule_named_output_is_reached_in_brackets(bert: LanguageModel) -> None:
    path = "bert.encoder.layer.1"
    with models.recorded(bare(BERT)) as expected:
        bare(BERT)(**encoded(LONG))
    with bert.trace(LONG):
        own = bert.bert.encoder.layer[1].attention["output"].dense.output.save()
        dense = bert.bert.encoder.layer[1]["output"].dense.output.save()
        inner = bert.bert.encoder.layer[1]["output"].output.save()
        layer = bert.bert.encoder.layer[1].output.save()
    assert_same(own, expected[f"{path}.attention.output.dense"][0])
    assert_same(dense, expected[f"{path}.output.dense"][0])
    assert_same(inner, expected[f"{path}.output"][0])
    assert_same(layer, expected[path][0])


def test_an_element_of_a_tuple_output_is_read(kind: Kind, model: LanguageModel) -> None:
    path = f"{kind.layer(1)}.{kind.attention}"
    expected = models.output_of(kind, LONG, path)
    assert isinstance(expected, tuple)
    with model.trace(LONG):
        both = model.get(path).output
        first = both[0].save()
        count = len(both).save()
    assert_same(first, expected[0])
    assert count == len(expected)


def test_the_root_output_is_the_model_output(kind: Kind, model: LanguageModel) -> None:
    expected = bare(kind)(**encoded(LONG))
    with model.trace(LONG):
        whole = model.output.save()
        field = model.output.logits.save()
        element = model.output[0].save()
    assert type(whole) is type(expected)
    assert torch.equal(whole.logits, expected.logits)
    assert torch.equal(field, expected.logits)
    assert torch.equal(element, expected.logits)


def test_the_result_is_the_model_output(kind: Kind, model: LanguageModel) -> None:
    expected = bare(kind)(**encoded(LONG))
    with model.trace(LONG) as tracer:
        result = tracer.result.save()
    assert type(result) is type(expected)
    assert torch.equal(result.logits, expected.logits)


def test_a_location_read_twice_gives_the_same_object(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG):
        first = gpt2.transformer.h[0].output.save()
        second = gpt2.transformer.h[0].output.save()
    assert first is second


def test_the_parts_of_a_parent_are_read_between_its_input_and_its_output(
    gpt2: LanguageModel,
) -> None:
    with models.recorded(bare(GPT2)) as expected:
        bare(GPT2)(**encoded(LONG))
    with gpt2.trace(LONG):
        given = gpt2.transformer.h[1].input.save()
        part = gpt2.transformer.h[1].mlp.c_fc.output.save()
        returned = gpt2.transformer.h[1].output.save()
    assert_same(given, expected["transformer.h.0"][0])
    assert_same(part, expected["transformer.h.1.mlp.c_fc"][0])
    assert_same(returned, expected["transformer.h.1"][0])


def test_a_parent_that_already_runs_when_the_block_asks_is_read(gpt2: LanguageModel) -> None:
    expected = models.output_of(GPT2, LONG, "transformer.h.1")
    with gpt2.trace(LONG):
        part = gpt2.transformer.h[1].attn.c_attn.output
        parent = gpt2.transformer.h[1]
        seen = parent.output.save()
    assert_same(seen, expected)


def test_a_loop_reads_layer_by_layer(kind: Kind, model: LanguageModel) -> None:
    with models.recorded(bare(kind)) as expected:
        bare(kind)(**encoded(LONG))
    with model.trace(LONG):
        norms = [].save()
        for layer in model.get(kind.layers):
            norms.append(layer.output.norm())
    assert norms == [expected[kind.layer(i)][0].norm() for i in range(3)]


def test_a_comprehension_reads_layer_by_layer(gpt2: LanguageModel) -> None:
    with models.recorded(bare(GPT2)) as expected:
        bare(GPT2)(**encoded(LONG))
    with gpt2.trace(LONG):
        means = [layer.mlp.output.mean() for layer in gpt2.transformer.h[1:]].save()
    assert means == [expected[f"transformer.h.{i}.mlp"][0].mean() for i in (1, 2)]


def test_a_condition_on_a_value_chooses_what_is_read(gpt2: LanguageModel) -> None:
    with models.recorded(bare(GPT2)) as expected:
        bare(GPT2)(**encoded(LONG))
    is_positive = bool(expected["transformer.h.0"][0].sum() > 0)
    with gpt2.trace(LONG):
        if gpt2.transformer.h[0].output.sum() > 0:
            chosen = gpt2.transformer.h[1].output.save()
        else:
            chosen = gpt2.transformer.h[2].output.save()
    assert_same(chosen, expected["transformer.h.1" if is_positive else "transformer.h.2"][0])


def test_a_read_in_a_short_circuit_is_not_made(gpt2: LanguageModel) -> None:
    never = False
    with gpt2.trace(LONG):
        # the right side would come too late for the read after it
        chosen = (never and gpt2.lm_head.output).save()
        other = (not never or gpt2.lm_head.output).save()
        first = gpt2.transformer.h[0].output.save()
    assert chosen is False
    assert other is True
    assert_same(first, models.output_of(GPT2, LONG, "transformer.h.0"))


def test_a_late_read_raises_at_once_and_the_earlier_saves_leave(gpt2: LanguageModel) -> None:
    later = []
    with pytest.raises(OutOfOrderError):
        with gpt2.trace(LONG):
            second = gpt2.transformer.h[2].output.save()
            first = gpt2.transformer.h[0].output.save()
            later.append("reached")
    assert later == []
    assert_same(second, models.output_of(GPT2, LONG, "transformer.h.2"))


def test_a_module_called_in_a_block_is_plain(gpt2: LanguageModel) -> None:
    with models.recorded(bare(GPT2)) as expected:
        bare(GPT2)(**encoded(LONG))
    lens = [
        bare(GPT2).lm_head(bare(GPT2).transformer.ln_f(expected[f"transformer.h.{i}"][0]))
        for i in range(3)
    ]
    with gpt2.trace(LONG):
        seen = [].save()
        for layer in gpt2.transformer.h:
            seen.append(gpt2.lm_head(gpt2.transformer.ln_f(layer.output)))
        # the calls above are no occurrence of these modules
        final = gpt2.transformer.ln_f.output.save()
        logits = gpt2.lm_head.output.save()
    assert_same(seen, lens)
    assert_same(final, expected["transformer.ln_f"][0])
    assert_same(logits, expected["lm_head"][0])


@pytest.mark.parametrize(
    "given",
    [
        SHORT,
        [SHORT],
        models.token_ids(SHORT),
        models.token_ids(SHORT)[0],
        models.token_ids(SHORT).tolist(),
        models.token_ids(SHORT)[0].tolist(),
        models.tokenizer()(SHORT, return_tensors="pt"),
        models.tokenizer()([SHORT]),
    ],
    ids=["text", "texts", "tensor", "flat-tensor", "lists", "list", "encoding", "list-encoding"],
)
def test_every_form_of_input_runs_the_same_tokens(gpt2: LanguageModel, given: object) -> None:
    with gpt2.trace(given):
        ids = gpt2.transformer.wte.input.save()
        logits = gpt2.output.logits.save()
    assert_same(ids, models.token_ids(SHORT))
    assert_same(logits, models.logits_of(GPT2, SHORT))


def test_keyword_tensors_are_an_input(gpt2: LanguageModel) -> None:
    with gpt2.trace(**encoded(SHORT)):
        by_encoding = gpt2.output.logits.save()
    with gpt2.trace(input_ids=models.token_ids(SHORT)):
        by_ids = gpt2.output.logits.save()
    assert_same(by_encoding, models.logits_of(GPT2, SHORT))
    assert_same(by_ids, models.logits_of(GPT2, SHORT))


def test_embeddings_are_an_input(gpt2: LanguageModel) -> None:
    embeddings = torch.linspace(-1, 1, 4 * 16).reshape(1, 4, 16)
    expected = bare(GPT2)(inputs_embeds=embeddings).logits
    with gpt2.trace(inputs_embeds=embeddings):
        logits = gpt2.output.logits.save()
    assert_same(logits, expected)


def test_prompts_of_one_length_run_as_one_batch(kind: Kind, model: LanguageModel) -> None:
    prompts = ["the cat sat", "a red bird"]
    expected = bare(kind)(**encoded(*prompts)).logits
    with model.trace(prompts):
        logits = model.output.logits.save()
    assert_same(logits, expected)


def test_a_trace_without_a_block_returns_the_output(kind: Kind, model: LanguageModel) -> None:
    output = model.trace(LONG, trace=False)
    assert_same(output.logits, models.logits_of(kind, LONG))


def test_further_keywords_reach_the_forward(gpt2: LanguageModel) -> None:
    with gpt2.trace(LONG, use_cache=False):
        output = gpt2.output.save()
        kwargs = gpt2.output.past_key_values.save()
    assert output.past_key_values is None
    assert kwargs is None


def test_labels_reach_the_forward(gpt2: LanguageModel) -> None:
    labels = models.token_ids(LONG)
    expected = bare(GPT2)(**encoded(LONG), labels=labels).loss
    with gpt2.trace(LONG, labels=labels):
        loss = gpt2.output.loss.save()
    assert_same(loss, expected)


def test_an_alias_reads_the_same_location() -> None:
    model = LanguageModel(
        models.new_gpt2(),
        tokenizer=models.tokenizer(),
        rename={"transformer.h": "layers", "mlp": "feedforward", ".transformer": ["body", "trunk"]},
    )
    expected = models.output_of(GPT2, SHORT, "transformer.h.1.mlp")
    with model.trace(SHORT):
        aliased = model.layers[1].feedforward.output.save()
        original = model.transformer.h[1].mlp.output.save()
    with model.trace(SHORT):
        by_body = model.body.h[1].mlp.output.save()
        by_trunk = model.trunk.h[1].feedforward.output.save()
    for seen in (aliased, original, by_body, by_trunk):
        assert_same(seen, expected)


def test_an_encoder_decoder_is_read_in_both_halves() -> None:
    module = models.new_t5()
    model = LanguageModel(models.new_t5(), tokenizer=models.tokenizer())
    decoder = models.token_ids("a red bird")
    with models.recorded(module) as expected:
        module(**encoded(LONG), decoder_input_ids=decoder)
    with model.trace(LONG, decoder_input_ids=decoder):
        encoder = model.encoder.block[1].output.save()
        cross = model.decoder.block[0].layer[1].EncDecAttention.output.save()
        logits = model.lm_head.output.save()
    assert_same(encoder, expected["encoder.block.1"][0])
    assert_same(cross, expected["decoder.block.0.layer.1.EncDecAttention"][0])
    assert_same(logits, expected["lm_head"][0])


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.inner(x).relu())


def test_a_module_called_twice_is_read_at_its_first_call() -> None:
    torch.manual_seed(0)
    module = _Twice()
    model = NNsight(module)
    x = torch.randn(2, 3)
    with models.recorded(module) as expected:
        module(x)
    with model.trace(x):
        seen = model.inner.output.save()
        result = model.output.save()
    assert_same(seen, expected["inner"][0])
    assert_same(result, expected[""][0])


def test_round_k_of_a_loop_reads_the_kth_call() -> None:
    torch.manual_seed(0)
    module = _Twice()
    model = NNsight(module)
    x = torch.randn(2, 3)
    with models.recorded(module) as expected:
        module(x)
    with model.trace(x) as tracer:
        seen = [].save()
        for _ in tracer.iter[:2]:
            seen.append(model.inner.output)
    assert_same(seen, expected["inner"])


def test_one_module_at_two_places_is_one_location() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(3, 3)
    module = nn.Sequential(shared, nn.ReLU(), shared)
    model = NNsight(module)
    x = torch.randn(2, 3)
    with models.recorded(module) as expected:
        module(x)
    with model.trace(x):
        first = model[0].output.save()
        last = model.output.save()
    assert_same(first, shared(x))
    assert_same(last, module(x))
