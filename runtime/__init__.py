"""One thread, one driver; no transformers and no vLLM in here."""

if __name__ != "nnsight_dsl.runtime":
    raise ImportError(
        f"this folder is the package 'nnsight_dsl.runtime', not {__name__!r}; "
        "import nnsight_dsl.runtime"
    )
