"""How long a test waits for what another thread or process does."""

PATIENCE = 600
"""Seconds. It is for what hangs; a busy machine may need a minute to import torch."""
