# Errors that are raised at an access are caught as others.
with model.trace("Hello"):
    try:
        h = model.h[0].output
    except ValueError as error:
        h = model.h[1].output
    finally:
        model.h[2].output = 0
