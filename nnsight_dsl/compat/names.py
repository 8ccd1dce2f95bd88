"""The table of names: module by module, what each name of nnsight is here.

A target is spelled `module:attribute`, or `module:` for a module itself. `{}` stands for the
dialect's module, `nnsight_dsl.compat.as_08` or `nnsight_dsl.compat.as_06`. A name that nnsight has
and this table lacks is missing on purpose: `MISSING` says why, in the error.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

_INERT = "nnsight_dsl.compat.inert:"
_TRACER = "nnsight_dsl.tracing.tracer:"

_REMOTE = {
    name: _INERT + name
    for name in ("compare is_model_running login ndif_status register status whoami".split())
}

NAMES: dict[str, dict[str, str]] = {
    "nnsight": {
        "CONFIG": "nnsight_dsl.compat.settings:CONFIG",
        "DiffusionModel": "{}:DiffusionModel",
        "Envoy": "{}:Envoy",
        "LanguageModel": "{}:LanguageModel",
        "NNsight": "{}:NNsight",
        "NNsightDeprecationWarning": "nnsight_dsl.compat.deprecations:NNsightDeprecationWarning",
        "Object": _INERT + "Object",
        "TransformersModel": "{}:TransformersModel",
        "VisionLanguageModel": "{}:VisionLanguageModel",
        "save": "{}:save",
        **_REMOTE,
    },
    "nnsight.intervention": {},
    "nnsight.intervention.backends": {},
    "nnsight.intervention.backends.remote": {
        name: _INERT + name for name in ("AsyncRemoteBackend", "RemoteBackend", "RemoteError")
    },
    "nnsight.intervention.barrier": {"Barrier": "nnsight_dsl.tracing.barrier:BarrierCall"},
    "nnsight.intervention.cache": {
        "Cache": "nnsight_dsl.compat.caches:KeptValues",
        "CacheView": "nnsight_dsl.compat.caches:CacheView",
        "Entry": "nnsight_dsl.tracing.cache:Entry",
    },
    "nnsight.intervention.editing": {"EditingTracer": "nnsight_dsl.compat.edits:EditingTracer"},
    "nnsight.intervention.envoy": {
        "Envoy": "{}:Envoy",
        "traceable": "nnsight_dsl.tracing.backends:traceable",
    },
    "nnsight.intervention.eproperty": {"eproperty": "nnsight_dsl.envoys.eproperties:eproperty"},
    "nnsight.intervention.interleaver": {
        "EarlyStopException": _INERT + "EarlyStopException",
        "Event": _INERT + "Event",
        "Interleaver": _INERT + "Interleaver",
        "Mediator": _INERT + "Mediator",
        "OutOfOrderError": "{}:OutOfOrderError",
    },
    "nnsight.intervention.iterator": {"Iterations": "nnsight_dsl.runtime.machines.steps:StepSpec"},
    "nnsight.intervention.source": {
        "Source": "nnsight_dsl.envoys.source:Source",
        "SourceEnvoy": "nnsight_dsl.envoys.source:SourceOperation",
        "SourceNotAvailable": "nnsight_dsl.runtime.errors:NoSourceError",
    },
    "nnsight.intervention.tracer": {
        "InterleavingTracer": _TRACER + "Tracer",
        "Invoker": _TRACER + "Invoker",
        "ScanningTracer": "nnsight_dsl.studies.scan_tracers:ScanTracer",
    },
    "nnsight.intervention.tracing": {},
    "nnsight.intervention.tracing.globals": {
        "Object": _INERT + "Object",
        "save": "{}:save",
    },
    "nnsight.modeling": {},
    "nnsight.modeling.base": {"NNsight": "{}:NNsight"},
    "nnsight.modeling.diffusion": {"DiffusionModel": "{}:DiffusionModel"},
    "nnsight.modeling.huggingface": {"HuggingFaceModel": "{}:TransformersModel"},
    "nnsight.modeling.language": {"LanguageModel": "{}:LanguageModel"},
    "nnsight.modeling.transformers": {
        "Generator": "nnsight_dsl.modeling.language:Generation",
        "TransformersModel": "{}:TransformersModel",
        "WrapperModule": "nnsight_dsl.compat.modules:WrapperModule",
    },
    "nnsight.modeling.vllm": {"VLLM": "nnsight_dsl.modeling.vllm:VLLM"},
    "nnsight.modeling.vlm": {"VisionLanguageModel": "{}:VisionLanguageModel"},
    "nnsight.ndif": {
        **_REMOTE,
        **{
            name: _INERT + name
            for name in (
                "CRITICAL_PACKAGES EnvComparison NdifStatus get_local_env get_remote_env pull_env"
            ).split()
        },
    },
    "nnsight.schema": {},
    "nnsight.schema.config": {
        name: f"nnsight_dsl.compat.settings:{name}" for name in ("ApiConfig", "AppConfig", "Config")
    },
    "nnsight.tracing": {},
    "nnsight.tracing.backend": {"Backend": "nnsight_dsl.tracing.backends:Backend"},
    "nnsight.tracing.globals": {"save": "{}:save"},
    "nnsight.tracing.tracer": {
        "ExitTracingException": _INERT + "ExitTracingException",
        "Tracer": "nnsight_dsl.blocks.block:Block",
        "WithBlockNotFoundError": "nnsight_dsl.transforms.errors:BlockNotFoundError",
        "save": "{}:save",
    },
    "nnsight.util": {"apply": "nnsight_dsl.compat.modules:apply"},
}

_ONLY_IN_06 = {
    "nnsight": {
        name: f"nnsight_dsl.compat.deprecations:OF_06.{name}"
        for name in ("apply", "cond", "dict", "list", "local", "trace")
    }
}

_MISSING = {
    ("nnsight", "VLLM"): "nnsight has no such name either; from nnsight.modeling.vllm import VLLM",
    ("nnsight.intervention.source", "STATE"): "operations are taken from bytecode, and nothing is "
    "installed that would have a state",
    ("nnsight.tracing.tracer", "mark"): "blocks are found by the running code, without marks",
}

MISSING_MODULES = {
    "nnsight.intervention.backends.local": "a block needs no simulation, it runs on this machine",
    "nnsight.intervention.batching": "rows are cut by the runtime, along the first axis; "
    "_batch_size and _batch of a subclass say how inputs make one call",
    "nnsight.intervention.serialization": "blocks travel as text (nnsight_dsl.transforms.recipes)",
    "nnsight.modeling.mixins": "models are loaded by transformers",
    "nnsight.modeling.quantization": "give dtype='nf4' and its like to the wrapper",
    "nnsight.modeling.tp": "values of tensor parallel models are whole where they can be read",
    "nnsight.schema.request": "remote execution is not built",
    "nnsight.schema.response": "remote execution is not built",
    "nnsight.tracing.util": "names leave a block without being pushed",
}
"""By name, why a module of nnsight is not here."""

_REMOVED_IN_08 = frozenset(
    "apply bool bytes cond dict float int iter list local log session set str trace tuple".split()
)


@cache
def names_of(dialect: str, module: str) -> Mapping[str, str] | None:
    """Return the targets of a module's names; None if there is no such module."""
    found = NAMES.get(module)
    if found is None:
        return None
    if dialect == "0.6":
        found = {**found, **_ONLY_IN_06.get(module, {})}
    home = f"nnsight_dsl.compat.as_{dialect.replace('.', '')}"
    return {name: target.replace("{}", home) for name, target in found.items()}


def removed_from(dialect: str, module: str, name: str) -> str:
    """Return the message of the error for a name that a module does not have."""
    text = f"module {module!r} has no attribute {name!r}"
    reason = _MISSING.get((module, name)) or MISSING_MODULES.get(f"{module}.{name}")
    if reason is not None:
        return f"{text}, on purpose: {reason}"
    if module == "nnsight" and name in _REMOVED_IN_08:
        return (
            f"{text}: it was removed before 0.8; write plain Python in the block ('if', 'for', "
            "list(), functions), or run the program by nnsight_dsl.compat.install('0.6')"
        )
    return text
