# Subjects and guards are expressions, patterns are not.
with model.trace("Hello"):
    match model.h[0].output:
        case (hidden, *_) if model.h[1].output is not None:
            h = hidden
        case hidden:
            h = hidden
