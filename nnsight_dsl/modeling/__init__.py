"""Wrappers of models, by what they take as input."""
