"""Suppression comments: `# noqa` for all findings of a line, `# noqa: NNS101, NNS302` for some.

A code may be a prefix (`# noqa: NNS3`). A finding that spans several lines is suppressed by a
comment on any of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NOQA = re.compile(
    r"#\s*noqa\b(\s*:\s*(?P<codes>[A-Z]+[0-9]*(?:[,\s]+[A-Z]+[0-9]+)*))?", re.IGNORECASE
)


def is_suppressed(line: str, code: str) -> bool:
    """Return whether a comment on a line suppresses findings of a rule."""
    if "noqa" not in line.lower():
        return False
    for found in _NOQA.finditer(line):
        codes = found["codes"]
        if codes is None:
            # "noqa:" followed by something else than codes is not a bare "noqa"
            return not line[found.end() :].lstrip().startswith(":")
        if any(code.startswith(one.upper()) for one in re.split(r"[,\s]+", codes) if one):
            return True
    return False


def suppressed_at(lines: Sequence[str], line: int, last: int, code: str) -> bool:
    """Return whether a finding is suppressed on one of the lines that it spans.

    Args:
        lines: the lines of the file.
        line: first line of the finding, from 1.
        last: last line of the finding.
        code: code of its rule.
    """
    first, end = max(line, 1), min(max(line, last), len(lines))
    return any(is_suppressed(lines[number - 1], code) for number in range(first, end + 1))
