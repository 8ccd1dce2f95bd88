"""Tapping: how a run gets between a module's call and its result."""
