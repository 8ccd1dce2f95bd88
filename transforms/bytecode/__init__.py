"""Operations inside a module's forward: found in its bytecode, and instrumented there.

`operations` lists the calls, operators, subscripts, locals and returns of a function by name.
`taps` makes a copy of the function's code that passes the values of chosen operations to a tap.
`stack` analyses which instruction pushed which value, `versions` holds all differences between
the Python versions, and `verify` checks instrumented code in tests.
"""
