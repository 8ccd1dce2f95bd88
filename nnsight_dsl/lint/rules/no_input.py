"""A trace has neither an input nor an invoke with one.

The input of the model is given to `trace` or `generate`, or to the invokes inside. Without either
there is nothing to run, except for a module whose forward has no required argument. This is
reported if the file shows that the model is a language model, or if facts about the model are
known (`--model`).

Wrong:

    with model.trace():
        logits = model.lm_head.output.save()

Right:

    with model.trace("The Eiffel Tower is in"):
        logits = model.lm_head.output.save()
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ..analysis import File
from ..blocks import Block
from ..diagnostics import ERROR, Finding
from ..held_values import called_name

CODE = "NNS401"
SEVERITY = ERROR

_OPTIONS = frozenset(
    "do_sample interventions log max_length max_new_tokens min_length min_new_tokens num_beams "
    "num_return_sequences remote repetition_penalty scan temperature top_k top_p trace use_cache "
    "validate".split()
)
"""Keywords that are never an input of a model."""
_LANGUAGE_MODELS = frozenset({"LanguageModel", "TransformersModel", "VisionLanguageModel"})
_PARTS = frozenset({"lm_head", "embed_tokens", "wte", "transformer", "gpt_neox", "embed_out"})
"""Names of modules that mark a model as a language model."""


def check(file: File) -> Iterator[Finding]:
    """Find runs whose arguments, and those of their invokes, contain no input."""
    for machine in file.machines():
        block = machine.block
        if not block.is_run or block.call is None or machine.tracer_escapes():
            continue
        if may_have_input(block.call):
            continue
        invokes = [one for one in block.all_blocks() if one.kind == "invoke"]
        if any(one.call is not None and may_have_input(one.call) for one in invokes):
            continue
        if not invokes and not any(machine.is_of_module(one) for one in machine.accesses):
            continue
        if _opens_elsewhere(block) or not _needs_input(file, block):
            continue
        yield Finding(
            block.call,
            f"this {block.kind} has neither an input nor an invoke with one, so the model cannot "
            f"run; write {ast.unparse(block.call.func)}(input), or 'with tracer.invoke(input):' "
            "inside",
        )


def _needs_input(file: File, block: Block) -> bool:
    """Return whether the model of a run is certain to need an input."""
    model = file.model_of(block)
    structure = file.structure(model)
    if block.kind == "generate" or structure is not None:
        return structure is None or structure.needs_input
    if block.call is None or not isinstance(block.call.func, ast.Attribute):
        return False
    owner = block.call.func.value
    binder = file.names.bindings.binder(owner) if isinstance(owner, ast.Name) else None
    made = binder.value if isinstance(binder, ast.Assign) else None
    if isinstance(made, ast.Call) and called_name(made) in _LANGUAGE_MODELS:
        return True
    return any(
        access.model == model and access.path is not None and _PARTS & set(map(str, access.path))
        for machine in file.machines()
        for access in machine.accesses
    )


def may_have_input(call: ast.Call) -> bool:
    """Return whether the arguments of a call may contain an input."""
    return bool(call.args) or any(one.arg not in _OPTIONS for one in call.keywords)


def _opens_elsewhere(block: Block) -> bool:
    """Return whether `.invoke` is used other than to open one of the blocks found here."""
    openers = {one.call.func for one in block.all_blocks() if one.call is not None}
    return any(
        isinstance(node, ast.Attribute) and node.attr == "invoke" and node not in openers
        for node in block.tree.walk(block.node)
    )
