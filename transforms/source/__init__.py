"""The lowering: from the source text of a block to the code of its program.

`pipeline` runs the passes in order; each file of `passes/` rewrites one construct. `unsupported`
refuses constructs that cannot be lowered, `scopes` analyses names, `accesses` lists the places
where a block waits for the model, and `plain` decides whether these are all. `modules` lowers the
blocks of a whole module for the import hook.
"""
