# The condition is asked for again in every round.
with model.trace("Hello"):
    while model.router.output.argmax() < n:
        n -= 1
