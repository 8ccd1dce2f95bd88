"""The passes that rewrite a block, one construct per file.

Each pass is a `libcst` transformer. Its module docstring shows two texts, "this" and "becomes".
`nnsight_dsl.transforms.source.pipeline` documents the order of the passes and the reasons for it.
"""
