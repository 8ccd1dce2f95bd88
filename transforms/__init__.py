"""Text and code objects in, programs and code objects out; no torch in here."""

if __name__ != "nnsight_dsl.transforms":
    raise ImportError(
        f"this folder is the package 'nnsight_dsl.transforms', not {__name__!r}; "
        "import nnsight_dsl.transforms"
    )
