"""Reading of sources: Python files and notebooks as one text, with the lines that `ast` counts.

The cells of a notebook are concatenated, since a later cell reads the names of earlier ones;
`Source.cells` maps each line back to its cell. Cells that are not Python (a `%%bash`, an
unfinished one) are replaced by empty lines, so that the other cells can be linted; a line with a
magic is replaced by `pass`. Line numbers stay the same.

A file that cannot be decoded or parsed raises `UnreadableError`, which `engine` turns into a
diagnostic.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_LINE_END = re.compile(r"\r\n|\r|\n")
_SKIPPED = frozenset(
    "__pycache__ build dist node_modules site-packages venv env .git .hg .tox .venv".split()
)
_PLAIN_CELL_MAGICS = ("%%time", "%%timeit", "%%capture", "%%prun")


class UnreadableError(Exception):
    """Control flow inside the linter: a file cannot be read as Python or as a notebook."""

    def __init__(self, message: str, line: int = 1, column: int = 0, cell: int | None = None):
        super().__init__(message)
        self.line = line
        self.column = column
        self.cell = cell


@dataclass(slots=True)
class Source:
    """The text of a file.

    Attributes:
        file: the file name as the user gave it.
        lines: its lines, without line ends.
        cells: for a notebook, number of the cell and line in the cell of each line; else None.
        broken: errors of the notebook's cells that do not parse.
    """

    file: str
    lines: list[str]
    cells: list[tuple[int, int]] | None = None
    broken: list[UnreadableError] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole text."""
        return "\n".join(self.lines) + "\n"


def source_of(file: str, content: bytes) -> Source:
    """Decode the content of a file.

    Raises:
        UnreadableError: the content is not a text, or not a notebook.
    """
    if file.endswith(".ipynb"):
        return _notebook(file, content)
    return Source(file, lines_of(_decoded(content)))


def lines_of(text: str) -> list[str]:
    """Split a text into lines as Python does; form feeds and Unicode separators end no line."""
    lines = _LINE_END.split(text)
    if lines and not lines[-1]:
        lines.pop()
    return lines


def parse(source: Source) -> ast.Module:
    """Parse a source.

    Raises:
        UnreadableError: the text is not valid Python.
    """
    return _parsed(source.text)


def _parsed(text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            # warnings about the text (an invalid escape) are not the linter's to report
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except SyntaxError as error:
        raise UnreadableError(
            f"this is not Python: {error.msg}", error.lineno or 1, max((error.offset or 1) - 1, 0)
        ) from None
    except (RecursionError, MemoryError):
        raise UnreadableError("this is nested too deeply for Python to parse") from None
    except ValueError as error:
        raise UnreadableError(f"this is not Python: {error}") from None


def _decoded(content: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise UnreadableError(f"this is not text: {error}") from None
    if "\0" in text:
        raise UnreadableError("this is not text: it holds null bytes")
    return text.removeprefix("\ufeff")


def _notebook(file: str, content: bytes) -> Source:
    try:
        found = json.loads(content)
        cells = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
        texts = [cell["source"] for cell in cells]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableError(f"this is not a notebook: {type(error).__name__}: {error}") from None
    source = Source(file, [], [])
    for number, text in enumerate(texts, start=1):
        whole = "".join(text) if isinstance(text, list) else str(text)
        lines = _without_magics(lines_of(whole))
        try:
            _parsed("\n".join(lines) + "\n")
        except UnreadableError as error:
            source.broken.append(UnreadableError(str(error), error.line, error.column, number))
            lines = [""] * len(lines)
        source.lines += lines
        if source.cells is not None:
            source.cells += [(number, line) for line in range(1, len(lines) + 1)]
    return source


def _without_magics(lines: Sequence[str]) -> list[str]:
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("%%") and not first.startswith(_PLAIN_CELL_MAGICS):
        return [""] * len(lines)
    kept = []
    for line in lines:
        stripped = line.lstrip()
        is_magic = stripped.startswith(("%", "!", "?")) or (
            stripped.endswith("?") and re.fullmatch(r"[\w.]+\?{1,2}", stripped) is not None
        )
        kept.append(line[: len(line) - len(stripped)] + "pass" if is_magic else line)
    return kept


def files_in(paths: Iterable[Path], excluded: Sequence[str] = ()) -> Iterator[Path]:
    """Yield the Python files and notebooks below some paths.

    Args:
        paths: files and folders. A file is yielded whatever its name is.
        excluded: patterns of names below the folders to leave out.
    """
    for path in paths:
        if path.is_dir():
            yield from sorted(_below(path, excluded))
        else:
            yield path


def _below(folder: Path, excluded: Sequence[str]) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name in _SKIPPED or entry.name.startswith("."):
            continue
        if any(entry.match(pattern) for pattern in excluded):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _below(entry, excluded)
        elif entry.suffix in (".py", ".ipynb") and entry.is_file():
            yield entry
