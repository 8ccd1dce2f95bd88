"""Tracing: tracers, which a user opens on a model, and their runs."""
