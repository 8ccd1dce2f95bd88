"""Comments that take findings away: `# noqa`, or `# noqa: NNS101, NNS302`."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NOQA = re.compile(
    r"#\s*noqa\b(\s*:\s*(?P<codes>[A-Z]+[0-9]*(?:[,\s]+[A-Z]+[0-9]+)*))?", re.IGNORECASE
)


def is_suppressed(line: str, code: str) -> bool:
    """Return whether the comment of a line takes findings of a rule away."""
    if "noqa" not in line.lower():
        return False
    for found in _NOQA.finditer(line):
        codes = found["codes"]
        if codes is None:
            # "noqa:" with what is no code is meant for some other rule
            return not line[found.end() :].lstrip().startswith(":")
        if any(code.startswith(one.upper()) for one in re.split(r"[,\s]+", codes) if one):
            return True
    return False


def suppressed_at(lines: Sequence[str], line: int, last: int, code: str) -> bool:
    """Return whether a finding that reaches over some lines is taken away on one of them."""
    first, end = max(line, 1), min(max(line, last), len(lines))
    return any(is_suppressed(lines[number - 1], code) for number in range(first, end + 1))
