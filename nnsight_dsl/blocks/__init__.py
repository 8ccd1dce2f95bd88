"""Blocks: `with` statements whose body is lowered, and the import hook, which lowers modules."""
