"""Machines: running programs, and the means to suspend and resume them."""
