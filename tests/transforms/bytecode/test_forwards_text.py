"""Forwards of torch and transformers, compiled from their text, are tapped and verified unrun.

The text is that of the packages in the environment of this Python or, where it has none, of the
one beside the checkout (`.venv`); where neither is there, the test says so and sees none.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

from nnsight_dsl.transforms.bytecode.operations import operations_of
from nnsight_dsl.transforms.bytecode.taps import tapped_code
from nnsight_dsl.transforms.bytecode.verify import faults_in

from .samples import Noting

FAMILIES = (
    "albert bart bert bloom clip cohere deberta_v2 distilbert electra falcon gemma gemma2 gemma3 "
    "gpt2 gpt_neo gpt_neox gptj llama mamba mistral mixtral mpnet olmo2 opt phi phi3 qwen2 qwen3 "
    "roberta t5 vit whisper xlnet"
).split()


def _packages() -> Path | None:
    beside = Path(__file__).resolve().parents[3] / ".venv" / "lib"
    places = [Path(sysconfig.get_paths()["purelib"]), *beside.glob("python3.*/site-packages")]
    return next((place for place in places if (place / "transformers").is_dir()), None)


def _files(packages: Path) -> Iterator[Path]:
    models = packages / "transformers" / "models"
    yield from (models / name / f"modeling_{name}.py" for name in FAMILIES)
    yield from sorted((packages / "torch" / "nn" / "modules").glob("*.py"))
    yield packages / "torch" / "nn" / "functional.py"


def codes_in(code: CodeType) -> Iterator[CodeType]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield value
            yield from codes_in(value)


def test_all_operations_of_installed_forwards() -> None:
    packages = _packages()
    if packages is None:
        print("no torch and no transformers beside this Python: no text to verify")
        return
    functions = operations = 0
    for file in _files(packages):
        if not file.exists():
            continue
        code = compile(file.read_text(encoding="utf-8"), file.name, "exec", dont_inherit=True)
        for inner in codes_in(code):
            if inner.co_name != "forward" and file.name != "functional.py":
                continue
            found = operations_of(inner)
            taps = {name: Noting(name, []) for name in found}
            for around in (frozenset(), frozenset(found)):
                faults = faults_in(tapped_code(inner, taps, around), inner)
                assert faults == [], f"{file.name}: {inner.co_qualname}"
            functions += 1
            operations += len(found)
    print(f"Python {sys.version_info[:2]}: {functions} functions, {operations} operations")
    assert functions >= 300
