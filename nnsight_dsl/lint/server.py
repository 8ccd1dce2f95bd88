"""A language server that shows the diagnostics of `nnsight-dsl lint` while a file is edited.

    nnsight-dsl server

speaks the Language Server Protocol over standard input and output. Configure an editor to start
it for Python files. It publishes diagnostics when a file is opened or changed, and clears them
when the file is closed. The settings are those of `pyproject.toml`, with the model named there, if
any; they are read again when a file is saved. If the settings are invalid, the defaults apply.

It needs pygls: `pip install 'nnsight_dsl[server]'`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_dsl.version import __version__

from .diagnostics import ERROR, Diagnostic
from .engine import Structures, lint
from .settings import Settings, SettingsError, settings_for

if TYPE_CHECKING:
    from lsprotocol import types
    from pygls.lsp.server import LanguageServer
    from pygls.workspace import TextDocument


def serve() -> int:
    """Serve an editor until it ends the session; return the exit status."""
    try:
        server = new_server()
    except ModuleNotFoundError as error:
        print(
            f"nnsight-dsl server: {error}; install it with pip install 'nnsight_dsl[server]'",
            file=sys.stderr,
        )
        return 2
    server.start_io()
    return 0


class _Known:
    """A cache of the settings and model facts of each folder."""

    def __init__(self) -> None:
        self._settings: dict[Path, tuple[Settings, Structures | None]] = {}

    def of(self, file: str) -> tuple[Settings, Structures | None]:
        """Return settings and model facts for a file; the defaults if the settings are invalid."""
        folder = Path(file).parent
        if folder not in self._settings:
            self._settings[folder] = _settings_of(folder)
        return self._settings[folder]

    def forget(self) -> None:
        """Clear the cache, so that settings are read again."""
        self._settings.clear()


def _settings_of(folder: Path) -> tuple[Settings, Structures | None]:
    from .commands import structures_of

    try:
        settings = settings_for([folder])
        return settings, structures_of(settings.models)
    except (SettingsError, OSError):
        return Settings(), None


def new_server() -> LanguageServer:
    """Make the server.

    Raises:
        ModuleNotFoundError: pygls is not installed.
    """
    from lsprotocol import types
    from pygls.lsp.server import LanguageServer

    server = LanguageServer("nnsight-dsl", __version__)
    known = _Known()

    def publish(uri: str) -> None:
        document = server.workspace.get_text_document(uri)
        found = _found(document, known)
        server.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(
                uri=uri,
                version=document.version,
                diagnostics=[_diagnostic(one, document.lines) for one in found],
            )
        )

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(params: types.DidOpenTextDocumentParams) -> None:
        publish(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(params: types.DidChangeTextDocumentParams) -> None:
        publish(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def saved(params: types.DidSaveTextDocumentParams) -> None:
        known.forget()
        publish(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(params: types.DidCloseTextDocumentParams) -> None:
        server.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(uri=params.text_document.uri, diagnostics=[])
        )

    return server


def _found(document: TextDocument, known: _Known) -> list[Diagnostic]:
    file = document.path or document.uri
    settings, structures = known.of(file)
    return lint(file, document.source.encode(errors="replace"), settings, structures)


def _diagnostic(one: Diagnostic, lines: Sequence[str]) -> types.Diagnostic:
    from lsprotocol import types

    start = types.Position(one.line - 1, _units(lines, one.line, one.column))
    end = types.Position(one.end_line - 1, _units(lines, one.end_line, one.end_column))
    is_error = one.severity == ERROR
    return types.Diagnostic(
        range=types.Range(start, end),
        message=one.message,
        code=one.code,
        source="nnsight-dsl",
        severity=types.DiagnosticSeverity.Error if is_error else types.DiagnosticSeverity.Warning,
    )


def _units(lines: Sequence[str], line: int, column: int) -> int:
    """Convert a column in characters into UTF-16 code units, as the protocol counts."""
    text = lines[line - 1] if line <= len(lines) else ""
    return len(text[: column - 1].encode("utf-16-le")) // 2
