# Clauses nest in the order in which they are written.
with model.trace("Hello"):
    both = [a + b.output for a in values if a for b in model.h if b.input is not a]
