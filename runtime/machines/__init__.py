"""Machines: one running program each, with what it needs to be suspended and resumed."""
