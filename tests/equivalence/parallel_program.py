"""A program for two processes: a tensor parallel model gives the values of the plain one.

    torchrun --nproc-per-node 2 tests/equivalence/parallel_program.py CHECKPOINT

Each process compares whole values with those of a plain model under hooks, and prints `whole`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers.distributed import DistributedConfig

from nnsight_dsl import InputError, LanguageModel, intervene, sweep
from tests.models import encoded, hooked, recorded

PROMPT = "the cat sat"
ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
QUERY, UP = f"{ATTENTION}.q_proj", f"{MLP}.up_proj"
OUTPUTS = [QUERY, f"{ATTENTION}.o_proj", ATTENTION, UP, MLP, "lm_head"]


def close(one: Any, other: Any) -> None:
    assert one.shape == other.shape, (one.shape, other.shape)
    assert torch.allclose(one, other, atol=1e-5), (one - other).abs().max()


def check_reads(model: LanguageModel, plain: Any) -> None:
    given: dict[str, Any] = {}
    handle = plain.get_submodule(f"{MLP}.down_proj").register_forward_pre_hook(
        lambda _, args: given.update(down=args[0])
    )
    with recorded(plain, OUTPUTS) as seen:
        plain(**encoded(PROMPT))
    handle.remove()
    for _ in range(2):
        with model.trace(PROMPT) as tracer:
            cache = tracer.cache(modules=[model.model.layers[1].mlp.up_proj])
            query = model.model.layers[1].self_attn.q_proj.output.save()
            mixed = model.model.layers[1].self_attn.o_proj.output.save()
            attention = model.model.layers[1].self_attn.output[0].save()
            up = model.model.layers[1].mlp.up_proj.output.save()
            down = model.model.layers[1].mlp.down_proj.input.save()
            mlp = model.model.layers[1].mlp.output.save()
            logits = model.lm_head.output.save()
        # as hooks see it: the first element of a tuple
        whole = [query, mixed, attention, up, mlp, logits]
        for value, path in zip(whole, OUTPUTS, strict=True):
            expected = seen[path][0]
            close(value, expected[0] if isinstance(expected, tuple) else expected)
        close(down, given["down"])
        close(cache["model.layers.1.mlp.up_proj"].output, up)


def check_writes(model: LanguageModel, plain: Any) -> None:
    def edit(output: Any) -> Any:
        changed = output.clone()
        changed[..., 3] = 5
        changed[..., -1] *= -2
        return changed

    with hooked(plain, {f"{ATTENTION}.q_proj": edit, f"{MLP}.up_proj": edit}):
        expected = plain(**encoded(PROMPT)).logits
    with model.trace(PROMPT):
        query = model.model.layers[1].self_attn.q_proj.output.clone()
        query[..., 3] = 5
        query[..., -1] *= -2
        model.model.layers[1].self_attn.q_proj.output = query
        model.model.layers[1].mlp.up_proj.output = edit(model.model.layers[1].mlp.up_proj.output)
        logits = model.output.logits.save()
    close(logits, expected)

    with torch.no_grad():
        with model.trace(PROMPT):
            model.model.layers[1].mlp.down_proj.input[..., 1:] = 0
            zeroed = model.output.logits.save()
    first = plain.get_submodule(f"{MLP}.down_proj").register_forward_pre_hook(
        lambda _, args: (torch.cat([args[0][..., :1], torch.zeros_like(args[0][..., 1:])], -1),)
    )
    close(zeroed, plain(**encoded(PROMPT)).logits)
    first.remove()


def check_invokes_and_steps(model: LanguageModel, plain: Any) -> None:
    expected = {}
    for prompt in ("the cat", "a red"):
        with recorded(plain, OUTPUTS) as seen:
            plain(**encoded(prompt))
        expected[prompt] = seen[OUTPUTS[0]][0]
    with model.trace() as tracer:
        with tracer.invoke("the cat"):
            first = model.model.layers[1].self_attn.q_proj.output.save()
        with tracer.invoke("a red"):
            second = model.model.layers[1].self_attn.q_proj.output.save()
    close(first, expected["the cat"])
    close(second, expected["a red"])

    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with hooked(plain, {f"{MLP}.up_proj": lambda output: output * 0}):
        tokens = plain.generate(**encoded(PROMPT), **options)
    with model.generate(PROMPT, **options) as tracer:
        for _ in tracer.iter[:]:
            model.model.layers[1].mlp.up_proj.output = model.model.layers[1].mlp.up_proj.output * 0
        made = tracer.result.save()
    assert torch.equal(made, tokens)


def check_gradients(model: LanguageModel, plain: Any) -> None:
    kept: dict[str, Any] = {}

    def keep(path: str) -> Any:
        def hook(_: Any, args: Any, output: Any) -> None:
            output.retain_grad()
            kept[path] = output

        return hook

    paths = [f"{ATTENTION}.q_proj", f"{MLP}.up_proj", "model.layers.0.mlp"]
    handles = [plain.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    plain(**encoded(PROMPT)).logits.pow(2).sum().backward()
    for handle in handles:
        handle.remove()
    with model.trace(PROMPT):
        early = model.model.layers[0].mlp.output
        query = model.model.layers[1].self_attn.q_proj.output
        up = model.model.layers[1].mlp.up_proj.output
        with model.output.logits.pow(2).sum().backward():
            of_up = up.grad.save()
            of_query = query.grad.save()
            of_early = early.grad.save()
    for value, path in zip((of_query, of_up, of_early), paths, strict=True):
        close(value, kept[path].grad)


@intervene
def scaled(model, factor):
    model.model.layers[1].mlp.up_proj.output = model.model.layers[1].mlp.up_proj.output * factor
    return model.lm_head.output[:, -1]


def check_sweep(model: LanguageModel, plain: Any) -> None:
    results = sweep(scaled, over={"factor": [0.5, 2.0]}, model=model, prompt=PROMPT)
    for factor, result in zip((0.5, 2.0), results, strict=True):
        with hooked(plain, {UP: lambda output, factor=factor: output * factor}):
            close(result, plain(**encoded(PROMPT)).logits[:, -1])


def check_refusals(model: LanguageModel) -> None:
    for read in (
        lambda: model.model.layers[1].mlp.act_fn.output.save(),
        lambda: model.model.layers[1].mlp.source.self_up_proj_0.output.save(),
        lambda: model.model.layers[1].mlp.up_proj(model.model.layers[1].mlp.input).save(),
    ):
        try:
            with model.trace(PROMPT):
                read()
        except InputError as error:
            assert "tensor parallel model" in str(error)
        else:
            raise AssertionError("a part was handed out")
    with model.trace(PROMPT):
        given = model.model.layers[1].mlp.input
        again = model.model.layers[1].mlp(given).save()
        output = model.model.layers[1].mlp.output.save()
    close(again, output)


def main(checkpoint: str) -> None:
    dist.init_process_group("gloo")
    plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    config = DistributedConfig(tp_plan="auto")
    model = LanguageModel(checkpoint, distributed_config=config)
    check_reads(model, plain)
    check_writes(model, plain)
    check_invokes_and_steps(model, plain)
    check_gradients(model, plain)
    check_sweep(model, plain)
    check_refusals(model)
    # one write, so that lines of two processes do not mix
    sys.stdout.write("whole\n")
    sys.stdout.flush()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
