"""Whatever a file holds, the linter says something clear, and goes on."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nnsight_dsl.lint.engine import lint
from nnsight_dsl.lint.settings import Settings
from tests.lint.conftest import RIGHT, WRONG

SETTINGS = Settings()


def codes(content: bytes, file: str = "any.py") -> list[str]:
    return [one.code for one in lint(file, content, SETTINGS)]


@given(st.binary(max_size=400))
@example(b"\xff\xfe\x00w\x00i\x00t\x00h")
@example(b"# -*- coding: no-such-codec -*-\n")
@example(b"\xef\xbb\xbfx = 1\n")
def test_arbitrary_bytes(content):
    assert set(codes(content)) <= {"NNS901"}
    assert set(codes(content, "any.ipynb")) <= {"NNS901"}


@given(st.text(alphabet="with model.trace():\n\t 'x[]{}=,#\\\r\x0c\u2028é", max_size=200))
def test_text_made_of_the_words_of_blocks(text):
    codes(text.encode())


@pytest.mark.parametrize("end", range(0, len(WRONG), 7))
def test_truncated_files(end):
    found = lint("any.py", WRONG[:end].encode(), SETTINGS)
    assert {one.code for one in found} <= {"NNS901", "NNS102"}
    for one in found:
        assert one.line <= WRONG.count("\n") + 1


def test_python_2():
    (found,) = lint("any.py", b'import os\nprint "Hello"\n' + WRONG.encode(), SETTINGS)
    assert (found.code, found.line) == ("NNS901", 2)
    assert "this is not Python" in found.message


BLOCK = 'with model.trace("x"):\n    '


@pytest.mark.parametrize(
    "text",
    [
        BLOCK + "(" * 5_000 + ")" * 5_000,
        BLOCK + "x = " + "[" * 150 + "model.a.output" + "]" * 150,
        BLOCK + "x = model.a.output + " + " + ".join(["1"] * 900),
        BLOCK + "x = model.a.output + " + " + ".join(["1"] * 20_000),
        BLOCK + "x = " + "-" * 5_000 + "model.a.output",
        BLOCK + "x = model" + ".a" * 900 + ".output",
        BLOCK + "model" + ".a[0]" * 20_000 + ".output",
        BLOCK + "model.a.output\n" + "".join(f"{' ' * n}if x:\n" for n in range(300)),
        "x = 1\nif x: pass\n" + "elif x: pass\n" * 5_000,
        BLOCK + "f'" + "{x}" * 3_000 + "'",
        "lambda: " * 3_000 + "0",
        "with model.trace(x), " * 1 + ", ".join(["a.trace(x)"] * 500) + ":\n    model.a.output\n",
    ],
    ids=range(12),
)
def test_what_is_nested_too_deeply(text):
    found = lint("any.py", (text + "\n").encode(), SETTINGS)
    assert {one.code for one in found} <= {"NNS901"}
    for one in found:
        assert "nested too deeply" in one.message or "this is not Python" in one.message


def test_a_file_of_100_000_lines():
    filler = "value = function(argument, [1, 2, 3])\n" * 99_990
    (found,) = lint("any.py", (filler + WRONG).encode(), SETTINGS)
    assert (found.code, found.line) == ("NNS102", 99_993)


def test_lines_end_where_python_says_so():
    # a form feed and Unicode's line separators end no line of Python
    head = "x = 'a\u2028b\x0bc'\n\x0c\ny = 1\r\nz = 2\r"
    (found,) = lint("any.py", (head + WRONG).encode(), SETTINGS)
    assert (found.code, found.line, found.column) == ("NNS102", 7, 13)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"cells": 3}', b'{"cells": [{}]}', b"[" * 100_000, b'{"cells": [3]}'],
    ids=range(7),
)
def test_broken_notebooks(content):
    (found,) = lint("any.ipynb", content, SETTINGS)
    assert found.code == "NNS901"
    assert "not a notebook" in found.message


def test_a_notebook_without_cells_is_clean():
    assert codes(json.dumps({"cells": []}).encode(), "any.ipynb") == []


def test_right_code_is_clean_in_every_encoding():
    text = "# -*- coding: latin-1 -*-\nname = 'é'\n" + RIGHT
    assert codes(text.encode("latin-1")) == []
    assert codes(b"\xef\xbb\xbf" + RIGHT.encode()) == []
