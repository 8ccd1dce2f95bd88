# Parentheses and comments inside an expression stay.
with model.trace("Hello"):
    h = (
        model.h[0]
        .output  # the residual stream
        [:, -1]
        .norm()
    )
    model.h[1].output = torch.cat(
        [h, h],  # twice
        dim=-1,
    )
