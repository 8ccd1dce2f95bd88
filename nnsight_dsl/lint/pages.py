"""The documentation pages of the rules, `docs/rules/NNS101.md`, generated from their docstrings.

    python -m nnsight_dsl.lint.pages docs/rules

A docstring consists of a summary line, an explanation, and the sections `Wrong:` and `Right:` with
an indented example each. Tests compare the pages with the docstrings, and lint the examples.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from .rules import BY_CODE, RULES, Rule

_HEADING = re.compile(r"^(Wrong|Right):\n\n((?:(?:    .*)?\n?)+)", re.MULTILINE)


def page_of(rule: Rule) -> str:
    """Return the page of a rule as Markdown."""
    head, _, body = rule.page.partition("\n\n")
    text = f"# {rule.code} {rule.name}\n\n{head}\n\n{body}\n"
    return _HEADING.sub(_example, text).rstrip() + "\n"


def _example(found: re.Match[str]) -> str:
    code = textwrap.dedent(found[2]).strip()
    return f"## {found[1]}\n\n```python\n{code}\n```\n\n"


def example_of(rule: Rule, heading: str) -> str:
    """Return an example of a rule.

    Args:
        rule: the rule.
        heading: `"Wrong"` or `"Right"`.

    Raises:
        ValueError: the rule's docstring has no such example.
    """
    for found in _HEADING.finditer(rule.page + "\n"):
        if found[1] == heading:
            return textwrap.dedent(found[2]).strip() + "\n"
    raise ValueError(f"{rule.code} has no example under {heading!r}; write one in its docstring")


def text_of(code: str) -> str | None:
    """Return the page of the rule with a code or a name, None if there is no such rule."""
    rule = BY_CODE.get(code.upper())
    if rule is None:
        rule = next((one for one in RULES if one.name == code.lower()), None)
    return None if rule is None else page_of(rule)


def index() -> str:
    """Return the index of all rules as Markdown."""
    rows = [f"| [{one.code}]({one.code}.md) | `{one.name}` | {one.summary} |" for one in RULES]
    return "\n".join(
        [
            "# Rules",
            "",
            "What `nnsight-dsl lint` looks for. The pages are made from the rules' docstrings;",
            "`nnsight-dsl rule CODE` shows the same.",
            "",
            "| code | name | what it reports |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def write_pages(folder: Path) -> None:
    """Write the index and the pages of all rules to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(index(), encoding="utf-8")
    for rule in RULES:
        (folder / f"{rule.code}.md").write_text(page_of(rule), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
