"""Tracing: what a user opens on a model, and the run that comes of it."""
