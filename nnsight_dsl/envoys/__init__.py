"""Envoys: the tree of a model's modules that users address."""
