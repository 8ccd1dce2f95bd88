"""Compilation: text and code objects in, programs and code objects out. Nothing here imports torch.

The problem: the statements of `with model.trace(...):` are written as if the model's values were
at hand, but the model computes them one after the other, inside its forward. The block has to
pause at each access until the value exists.

The mechanism: the block's source text is found (`texts`, `live_frames`), lowered to a generator
that yields a request at each access (`source`, `requests`), and packed with its metadata into a
`Program` (`program`). `nnsight_dsl.runtime` runs the generator and answers the requests. The
package `bytecode` does the same work one level below: it finds operations inside a module's
forward and instruments them.

    h = model.transformer.h[3].output       # the user's statement
    h = (yield ("read", model.transformer.h[3], "output"))      # the lowered one
"""

if __name__ != "nnsight_dsl.transforms":
    raise ImportError(
        f"this folder is the package 'nnsight_dsl.transforms', not {__name__!r}; "
        "import nnsight_dsl.transforms"
    )
