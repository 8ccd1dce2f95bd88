"""Tables and coloured text of rich as strings.

In a notebook rich prints to the output of the cell and writes nothing to the
console's file, so that a `__str__` made by it would be empty. A string is the same everywhere.
"""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def rendered(
    *parts: RenderableType,
    width: int = 10_000,
    colour: bool = False,
    highlight: bool = False,
    end: str = "\n",
) -> str:
    """Return the text that a terminal would show.

    Args:
        *parts: the parts to render, one below the other.
        width: of the terminal, in characters.
        colour: whether to add the codes that colour it.
        highlight: whether to colour numbers, strings and the like in plain text.
        end: the text after each part.
    """
    text = io.StringIO()
    console = Console(
        file=text,
        width=width,
        force_terminal=colour,
        no_color=not colour,
        force_jupyter=False,
        highlight=highlight,
    )
    for part in parts:
        console.print(part, end=end)
    return text.getvalue()
