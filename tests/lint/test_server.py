"""The language server, driven over standard input and output with the messages of an editor."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lint.conftest import RIGHT, WRONG
from tests.waiting import PATIENCE


class Editor:
    """An editor, as far as the protocol goes."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nnsight_dsl", "server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
        self._number = 0

    def notify(self, method: str, params: Any) -> None:
        self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def ask(self, method: str, params: Any) -> Any:
        self._number += 1
        self._send({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        while True:
            message = self.receive()
            if message.get("id") == self._number and "method" not in message:
                return message["result"]

    def diagnostics(self, version: int | None) -> list[dict[str, Any]]:
        """Wait for the diagnostics of a version of the file."""
        while True:
            message = self.receive()
            is_about = message.get("method") == "textDocument/publishDiagnostics"
            if is_about and message["params"].get("version") == version:
                found: list[dict[str, Any]] = message["params"]["diagnostics"]
                return found

    def receive(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        length = 0
        while line := stdout.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the server has ended"
        message: dict[str, Any] = json.loads(stdout.read(length))
        return message

    def end(self) -> int:
        self.ask("shutdown", None)
        self.notify("exit", None)
        status = self._process.wait(timeout=PATIENCE)
        self.close()
        return status

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        content = json.dumps(message).encode()
        stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
        stdin.flush()


@pytest.fixture
def editor(folder: Path) -> Iterator[Editor]:
    found = Editor(folder)
    capabilities = found.ask(
        "initialize", {"processId": None, "rootUri": folder.as_uri(), "capabilities": {}}
    )["capabilities"]
    assert capabilities["textDocumentSync"]["openClose"] is True
    found.notify("initialized", {})
    yield found
    found.close()


def opened(uri: str, text: str) -> dict[str, Any]:
    return {"textDocument": {"uri": uri, "languageId": "python", "version": 1, "text": text}}


def test_diagnostics_follow_the_edits(editor, folder):
    uri = (folder / "experiment.py").as_uri()
    editor.notify("textDocument/didOpen", opened(uri, WRONG))
    (found,) = editor.diagnostics(1)
    assert (found["code"], found["source"], found["severity"]) == ("NNS102", "nnsight-dsl", 1)
    assert found["range"] == {
        "start": {"line": 2, "character": 12},
        "end": {"line": 2, "character": 45},
    }
    assert "can no longer come" in found["message"]

    # the last line is taken away
    editor.notify(
        "textDocument/didChange",
        {
            "textDocument": {"uri": uri, "version": 2},
            "contentChanges": [
                {
                    "range": {
                        "start": {"line": 2, "character": 0},
                        "end": {"line": 3, "character": 0},
                    },
                    "text": "",
                }
            ],
        },
    )
    assert editor.diagnostics(2) == []

    # half of a line is typed
    editor.notify(
        "textDocument/didChange",
        {
            "textDocument": {"uri": uri, "version": 3},
            "contentChanges": [{"text": RIGHT + "print("}],
        },
    )
    assert [one["code"] for one in editor.diagnostics(3)] == ["NNS901"]

    editor.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
    assert editor.diagnostics(None) == []
    assert editor.end() == 0


def test_columns_are_counted_as_editors_do(editor, folder):
    uri = (folder / "experiment.py").as_uri()
    text = WRONG.replace("    inner", "    name = '\N{GRINNING FACE}é'; inner")
    editor.notify("textDocument/didOpen", opened(uri, text))
    (found,) = editor.diagnostics(1)
    # the face is two units of UTF-16, the letter one
    assert found["range"]["start"] == {"line": 2, "character": 12 + len("name = '  é'; ")}


def test_the_settings_of_the_folder_hold(editor, folder):
    (folder / "pyproject.toml").write_text('[tool.nnsight-dsl]\nignore = ["NNS102"]\n')
    uri = (folder / "experiment.py").as_uri()
    editor.notify("textDocument/didOpen", opened(uri, WRONG))
    assert editor.diagnostics(1) == []
    # settings are read again when a file is saved
    (folder / "pyproject.toml").write_text("[tool.nnsight-dsl]\n")
    editor.notify("textDocument/didSave", {"textDocument": {"uri": uri}})
    assert [one["code"] for one in editor.diagnostics(1)] == ["NNS102"]


def test_without_pygls_the_command_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygls.lsp.server", None)
    monkeypatch.setitem(sys.modules, "lsprotocol", None)
    status, out, err = command("server")
    assert (status, out) == (2, "")
    assert "pip install 'nnsight_dsl[server]'" in err
