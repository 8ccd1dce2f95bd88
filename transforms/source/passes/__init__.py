"""The rewrites of a block, one construct per file.

Each pass is a `libcst` transformer with a docstring of two texts: "this" and "becomes". The
order in which they run, and why, stands in `nnsight_dsl.transforms.source.pipeline`.
"""
