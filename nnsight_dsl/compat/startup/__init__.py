"""A folder for PYTHONPATH; see `nnsight_dsl.compat.switching`."""
