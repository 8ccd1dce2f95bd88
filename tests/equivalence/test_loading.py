"""Models that are loaded by name: remote code, attention implementations, precision."""

from pathlib import Path
from textwrap import dedent

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from nnsight_dsl import LanguageModel
from tests import models
from tests.models import (
    GPT2,
    LONG,
    SHORT,
    WORDS,
    assert_near,
    assert_same,
    encoded,
    new_gpt2,
    new_llama,
    new_t5,
    recorded,
    token_ids,
)

CODE = '''
import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class TinyConfig(PretrainedConfig):
    model_type = "tiny_remote"

    def __init__(self, width=8, words=30, **options):
        self.width = width
        self.words = words
        super().__init__(**options)


class Mean(nn.Module):
    """Mean of what came before, without what the mask leaves out."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x, mask):
        mask = mask[..., None].to(x.dtype)
        total = (x * mask).cumsum(1) / mask.cumsum(1).clamp(min=1)
        return self.mix(total) + x


class TinyForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.words, config.width)
        self.layers = nn.ModuleList([Mean(config.width) for _ in range(2)])
        self.head = nn.Linear(config.width, config.words)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **options):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return CausalLMOutput(logits=self.head(x))
'''


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model whose class stands in the folder."""
    # transformers copies the code into its cache before it imports it
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    folder = tmp_path / "tiny_remote"
    folder.mkdir()
    (folder / "modeling_tiny.py").write_text(dedent(CODE))
    namespace: dict[str, object] = {"__name__": "modeling_tiny"}
    exec(compile(CODE, "modeling_tiny.py", "exec"), namespace)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        module = namespace["TinyForCausalLM"](namespace["TinyConfig"]())
    module.config.auto_map = {
        "AutoConfig": "modeling_tiny.TinyConfig",
        "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
    }
    module.save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dispatch", [False, True])
def test_remote_code(remote: Path, dispatch: bool) -> None:
    plain = AutoModelForCausalLM.from_pretrained(remote, trust_remote_code=True)
    model = LanguageModel(str(remote), trust_remote_code=True, dispatch=dispatch)
    assert type(model._module).__module__.startswith("transformers_modules")
    assert type(model._module).__name__ == "TinyForCausalLM"
    with recorded(plain, ["layers.0"]) as seen:
        expected = plain(**encoded(LONG)).logits
    with model.trace(LONG):
        hidden = model.layers[0].output.save()
        logits = model.output.logits.save()
    assert_same(hidden, seen["layers.0"][0])
    assert_same(logits, expected)
    with model.trace() as tracer:
        with tracer.invoke(SHORT):
            model.layers[0].output[:] = 0
            short = model.output.logits.save()
        with tracer.invoke(LONG):
            long = model.output.logits.save()
    with models.hooked(plain, {"layers.0": torch.zeros_like}):
        assert_near(short[:, -2:], plain(**encoded(SHORT)).logits)
    assert_near(long, expected)


def test_remote_code_generates(remote: Path) -> None:
    greedy = {"max_new_tokens": 3, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    plain = AutoModelForCausalLM.from_pretrained(remote, trust_remote_code=True)
    model = LanguageModel(str(remote), trust_remote_code=True)
    with recorded(plain, ["layers.1"]) as seen:
        expected = plain.generate(**encoded(LONG), **greedy)
    with model.generate(LONG, **greedy) as tracer:
        hidden = [].save()
        for _ in tracer.iter[:]:
            hidden.append(model.layers[1].output)
        tokens = tracer.result.save()
    assert_same(tokens, expected)
    assert_same(list(hidden), seen["layers.1"])


def test_remote_code_is_not_run_untrusted(remote: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        LanguageModel(str(remote), trust_remote_code=False)


def test_a_scan_of_remote_code_needs_no_weights(remote: Path) -> None:
    model = LanguageModel(str(remote), trust_remote_code=True)
    with model.scan(LONG):
        hidden = model.layers[0].output.shape
    assert hidden == (1, 8, 8)
    assert model.device == torch.device("meta")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    new_gpt2().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dispatch", [False, True])
def test_eager_attention_has_weights_and_sdpa_has_none(folder: Path, dispatch: bool) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with recorded(plain, ["transformer.h.1.attn"]) as seen:
        expected = plain(**encoded(LONG)).logits
    found = {}
    for name in ("eager", "sdpa"):
        model = LanguageModel(str(folder), attn_implementation=name, dispatch=dispatch)
        with model.trace(LONG):
            attention = model.transformer.h[1].attn.output.save()
            logits = model.output.logits.save()
        assert model.config._attn_implementation == name
        found[name] = (*attention, logits)
    assert_same(found["eager"][:2], seen["transformer.h.1.attn"][0])
    assert_same(found["eager"][2], expected)
    assert found["eager"][1].shape == (1, 2, 8, 8)
    assert found["sdpa"][1] is None
    assert_near(found["sdpa"][0], found["eager"][0])
    assert_same(found["sdpa"][2], models.logits_of(GPT2, LONG))


def test_attention_weights_are_replaced(folder: Path) -> None:
    # the weights are what the layer returns beside its output; what they were used for has passed
    model = LanguageModel(str(folder), attn_implementation="eager")
    with model.trace(LONG, output_attentions=True):
        model.transformer.h[1].attn.output[1] = model.transformer.h[1].attn.output[1] * 0
        attentions = model.output.attentions.save()
        logits = model.output.logits.save()
    assert not attentions[1].any()
    assert attentions[0].any()
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert_same(logits, plain(**encoded(LONG)).logits)


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dispatch", [False, True])
def test_precision(folder: Path, option: str, dispatch: bool) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with recorded(plain, ["transformer.h.1"]) as seen:
        expected = plain(**encoded(LONG)).logits
    model = LanguageModel(str(folder), **{option: torch.bfloat16}, dispatch=dispatch)
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()
        logits = model.output.logits.save()
    assert hidden.dtype == logits.dtype == torch.bfloat16
    assert_same(hidden, seen["transformer.h.1"][0])
    assert_same(logits, expected)
    assert model.dtype == torch.bfloat16


def test_precision_by_name_and_in_a_scan(folder: Path) -> None:
    model = LanguageModel(str(folder), dtype="bfloat16")
    with model.scan(LONG):
        scanned = model.transformer.h[1].output.dtype
    assert model.device == torch.device("meta")
    with model.trace(LONG):
        hidden = model.transformer.h[1].output.save()
    assert scanned == hidden.dtype == torch.bfloat16


def test_another_class_of_transformers(tmp_path: Path) -> None:
    new_t5().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    model = LanguageModel(str(tmp_path), automodel="AutoModelForSeq2SeqLM")
    answer = token_ids("a dog")
    with model.trace(LONG, decoder_input_ids=answer):
        logits = model.output.logits.save()
    assert_same(logits, new_t5()(**encoded(LONG), decoder_input_ids=answer).logits)
    assert logits.shape == (1, 2, len(WORDS))


def test_a_path_object_is_a_path(folder: Path) -> None:
    model = LanguageModel(folder)
    with model.trace(LONG):
        logits = model.output.logits.save()
    assert_same(logits, models.logits_of(GPT2, LONG))


def test_flash_attention_without_its_package_is_transformers_error(folder: Path) -> None:
    with pytest.raises(ImportError, match=r"(?i)flash"):
        LanguageModel(str(folder), attn_implementation="flash_attention_2", dispatch=True)


def test_llama_by_eager_attention(tmp_path: Path) -> None:
    new_llama().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    model = LanguageModel(str(tmp_path), attn_implementation="eager")
    with recorded(plain, ["model.layers.2.self_attn"]) as seen:
        plain(**encoded(LONG))
    with model.trace(LONG):
        output = model.model.layers[2].self_attn.output.save()
    assert_same(output, seen["model.layers.2.self_attn"][0])


def _words(side: str, *, pads: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of the file's own, since the shared one is not to be changed."""
    return PreTrainedTokenizerFast(
        tokenizer_object=models.tokenizer().backend_tokenizer,
        eos_token="[EOS]",
        unk_token="[UNK]",
        padding_side=side,
        **({"pad_token": "[PAD]"} if pads else {}),
    )


@pytest.mark.parametrize("dispatch", [False, True])
def test_the_tokenizer_that_is_loaded_pads_left_for_a_causal_model(
    tmp_path: Path, dispatch: bool
) -> None:
    new_gpt2().save_pretrained(tmp_path)
    _words("right", pads=False).save_pretrained(tmp_path)
    model = LanguageModel(tmp_path, dispatch=dispatch)
    assert model.tokenizer.padding_side == "left"
    assert model.tokenizer.pad_token == "[EOS]"
    batch = model.tokenizer([SHORT, LONG], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    with model.trace(batch):
        logits = model.lm_head.output[0, -1].save()
    assert_near(logits, models.logits_of(GPT2, SHORT)[0, -1])


def test_the_tokenizer_that_is_loaded_with_an_encoder_pads_as_it_says(tmp_path: Path) -> None:
    models.new_bert().save_pretrained(tmp_path)
    _words("right").save_pretrained(tmp_path)
    model = LanguageModel(tmp_path, automodel="AutoModelForMaskedLM")
    assert model.tokenizer.padding_side == "right"
    assert model.tokenizer.pad_token == "[PAD]"


def test_a_tokenizer_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    new_gpt2().save_pretrained(tmp_path)
    given = _words("right", pads=False)
    for model in (
        LanguageModel(new_gpt2(), tokenizer=given),
        LanguageModel(tmp_path, tokenizer=given),
    ):
        assert model.tokenizer is given
        with model.trace([SHORT, LONG]):
            logits = model.lm_head.output[0, -1].save()
        assert_near(logits, models.logits_of(GPT2, SHORT)[0, -1])
    assert given.padding_side == "right"
    assert given.pad_token is None
