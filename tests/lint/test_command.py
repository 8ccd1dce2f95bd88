"""`nnsight-dsl lint` and `nnsight-dsl rule`: what they print, and with which status they end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnsight_dsl.lint.rules import RULES
from tests.lint.conftest import RIGHT, WRONG

ROOT = Path(__file__).resolve().parents[2]


def test_clean_files_end_with_status_0(command, folder):
    (folder / "right.py").write_text(RIGHT)
    assert command("lint", ".") == (0, "nothing found\n", "")


def test_a_finding_is_shown_with_its_line_and_a_caret(command, folder):
    (folder / "wrong.py").write_text(WRONG)
    status, out, err = command("lint", "wrong.py")
    assert (status, err) == (1, "")
    head, gutter, line, caret, *_ = out.splitlines()
    assert head.startswith("wrong.py:3:13: NNS102 transformer.h.0.mlp.output")
    assert gutter == "  |"
    assert line == "3 |     inner = model.transformer.h[0].mlp.output.save()"
    assert caret == "  |             " + "^" * len("model.transformer.h[0].mlp.output")
    assert out.splitlines()[-1] == "1 finding"


def test_the_caret_is_in_place_behind_tabs_and_other_letters(command, folder):
    text = WRONG.replace("    inner", "    ключ = 'ä'; inner")
    (folder / "wrong.py").write_text(text, encoding="utf-8")
    _, out, _ = command("lint", "wrong.py")
    _, _, line, caret, *_ = out.splitlines()
    assert line[caret.index("^") :].startswith("model.transformer.h[0].mlp.output")


def test_json_is_one_list_of_objects(command, folder):
    (folder / "wrong.py").write_text(WRONG)
    status, out, _ = command("lint", "--format", "json", ".")
    (found,) = json.loads(out)
    assert status == 1
    assert found == {
        "file": "wrong.py",
        "line": 3,
        "column": 13,
        "end_line": 3,
        "end_column": 46,
        "code": "NNS102",
        "severity": "error",
        "fixable": False,
        "message": found["message"],
    }
    assert found["message"].startswith("transformer.h.0.mlp.output can no longer come")


def test_json_of_nothing_is_an_empty_list(command, folder):
    (folder / "right.py").write_text(RIGHT)
    status, out, _ = command("lint", "--format", "json", ".")
    assert (status, json.loads(out)) == (0, [])


def test_github_annotations(command, folder):
    (folder / "a,b.py").write_text(WRONG)
    _, out, _ = command("lint", "--format", "github", ".")
    assert out.startswith("::error file=a%2Cb.py,line=3,col=13,endLine=3,title=NNS102::")
    assert len(out.splitlines()) == 1


def test_sarif(command, folder):
    (folder / "wrong.py").write_text(WRONG)
    _, out, _ = command("lint", "--format", "sarif", ".")
    log = json.loads(out)
    (run,) = log["runs"]
    (result,) = run["results"]
    assert log["version"] == "2.1.0"
    assert (result["ruleId"], result["level"]) == ("NNS102", "error")
    location = result["locations"][0]["physicalLocation"]
    assert location["artifactLocation"]["uri"] == "wrong.py"
    assert location["region"] == {"startLine": 3, "startColumn": 13, "endLine": 3, "endColumn": 46}
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [rule.code for rule in RULES]


def test_a_path_that_does_not_exist_ends_with_status_2(command, folder):
    status, out, err = command("lint", "nowhere.py")
    assert (status, out) == (2, "")
    assert "nowhere.py does not exist" in err


def test_unknown_arguments_end_with_status_2(command, folder):
    with pytest.raises(SystemExit) as caught:
        command("lint", ".", "--format", "xml")
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("no/such/folder!", "neither a folder with a config.json"),
        ("no_such_module:make", "is not a module that can be imported"),
        ("json:loads", "cannot be built"),
        ("json:no_such", "has no function 'no_such'"),
    ],
)
def test_a_model_that_does_not_exist_ends_with_status_2(command, folder, reference, text):
    (folder / "right.py").write_text(RIGHT)
    status, _, err = command("lint", ".", "--model", reference)
    assert status == 2
    assert text in err


def test_hidden_folders_and_those_of_installed_packages_are_left_out(command, folder):
    for name in (".hidden", "site-packages", "__pycache__", "kept"):
        (folder / name).mkdir()
        (folder / name / "wrong.py").write_text(WRONG)
    _, out, _ = command("lint", "--format", "json", ".")
    assert [one["file"] for one in json.loads(out)] == ["kept/wrong.py"]


@pytest.mark.parametrize(
    ("comment", "count"),
    [
        ("# noqa", 0),
        ("# noqa: NNS102", 0),
        ("# type: ignore # noqa: E501, NNS102", 0),
        ("#NOQA:NNS1", 0),
        ("# noqa: NNS103", 1),
        ("# noqa: E501", 1),
        ("# no quality", 1),
    ],
)
def test_comments_take_findings_away(command, folder, comment, count):
    (folder / "wrong.py").write_text(WRONG.rstrip() + f"  {comment}\n")
    _, out, _ = command("lint", "--format", "json", ".")
    assert len(json.loads(out)) == count


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ("", 1),
        ('select = ["NNS102"]', 1),
        ('select = ["NNS3"]', 0),
        ('ignore = ["NNS1"]', 0),
        ('exclude = ["wrong*"]', 0),
        ('[tool.nnsight-dsl.per-file-ignores]\n"wrong.py" = ["NNS102"]', 0),
        ('[tool.nnsight-dsl.per-file-ignores]\n"other/*" = ["NNS102"]', 1),
    ],
)
def test_settings(command, folder, settings, count):
    (folder / "pyproject.toml").write_text(f"[tool.nnsight-dsl]\n{settings}\n")
    (folder / "wrong.py").write_text(WRONG)
    _, out, _ = command("lint", "--format", "json", ".")
    assert len(json.loads(out)) == count


def test_a_setting_that_does_not_exist_ends_with_status_2(command, folder):
    (folder / "pyproject.toml").write_text("[tool.nnsight-dsl]\nselct = []\n")
    status, _, err = command("lint", ".")
    assert status == 2
    assert "'selct' is not a setting" in err


@pytest.mark.parametrize(
    ("arguments", "count"), [(["--select", "nns1,NNS9"], 1), (["--ignore", "NNS102"], 0)]
)
def test_rules_are_chosen_on_the_command_line(command, folder, arguments, count):
    (folder / "wrong.py").write_text(WRONG)
    _, out, _ = command("lint", "--format", "json", ".", *arguments)
    assert len(json.loads(out)) == count


@pytest.mark.parametrize("option", ["--select", "--ignore"])
@pytest.mark.parametrize("code", ["NNS999", "NNS1,E501", "F", "NNS1020", "sNNS"])
def test_a_code_that_no_rule_has_is_refused(command, folder, option, code):
    (folder / "wrong.py").write_text(WRONG)
    status, out, err = command("lint", ".", option, code)
    assert (status, out) == (2, "")
    unknown = code.rpartition(",")[2].upper()
    assert err.startswith(f"nnsight-dsl lint: {option} has {unknown!r}, with which no rule's code")


@pytest.mark.parametrize(
    "settings",
    [
        'select = ["NNS999"]',
        'ignore = ["NNS102", "E501"]',
        '[tool.nnsight-dsl.per-file-ignores]\n"wrong.py" = ["NNS12"]',
    ],
)
def test_a_code_in_the_settings_that_no_rule_has_is_refused(command, folder, settings):
    (folder / "pyproject.toml").write_text(f"[tool.nnsight-dsl]\n{settings}\n")
    (folder / "wrong.py").write_text(WRONG)
    status, out, err = command("lint", ".")
    assert (status, out) == (2, "")
    assert "with which no rule's code begins" in err


def notebook(*cells: str) -> str:
    made = [{"cell_type": "code", "source": cell.splitlines(True)} for cell in cells]
    text = {"cell_type": "markdown", "source": ["# Title\n", "print 'no code'"]}
    return json.dumps({"cells": [text, *made], "nbformat": 4})


def test_a_notebook_is_linted_cell_by_cell(command, folder):
    cells = ["import torch\n%matplotlib inline\n!ls", "%%bash\nls -l", "model = 1", WRONG]
    (folder / "a.ipynb").write_text(notebook(*cells))
    status, out, _ = command("lint", "--format", "json", "a.ipynb")
    (found,) = json.loads(out)
    assert (status, found["cell"], found["line"], found["column"]) == (1, 4, 3, 13)
    _, text, _ = command("lint", "a.ipynb")
    assert text.startswith("a.ipynb:cell 4:3:13: NNS102")
    assert "3 |     inner" in text


def test_a_value_of_one_cell_is_used_in_another(command, folder):
    cells = ['with model.trace("a"):\n    h = model.lm_head.output', "print(h)"]
    (folder / "a.ipynb").write_text(notebook(*cells))
    _, out, _ = command("lint", "--format", "json", "a.ipynb")
    (found,) = json.loads(out)
    assert (found["code"], found["cell"], found["line"]) == ("NNS301", 1, 2)


def test_a_message_names_the_line_of_its_cell(command, folder):
    (folder / "a.ipynb").write_text(notebook("import torch\n\n\n", WRONG))
    _, out, _ = command("lint", "--format", "json", "a.ipynb")
    (found,) = json.loads(out)
    assert (found["cell"], found["line"]) == (2, 3)
    assert "returned (line 2 of cell 2)" in found["message"]


NOT_UTF_8 = """\
# -*- coding: latin-1 -*-
with model.trace("é"):
    h = model.a.output
print(h)
"""


@pytest.mark.parametrize("kind", ["notebook", "latin-1"])
def test_nothing_is_called_fixable_in_a_file_that_is_left_alone(command, folder, kind):
    if kind == "notebook":
        path = folder / "a.ipynb"
        path.write_text(notebook("with model.trace('a'):\n    h = model.a.output\nprint(h)"))
    else:
        path = folder / "a.py"
        path.write_bytes(NOT_UTF_8.encode("latin-1"))
    before = path.read_bytes()
    _, out, _ = command("lint", "--format", "json", str(path))
    assert [(one["code"], one["fixable"]) for one in json.loads(out)] == [("NNS301", False)]
    _, text, _ = command("lint", "--fix", str(path))
    assert text.rstrip().endswith("1 finding")
    assert path.read_bytes() == before


def test_a_cell_that_is_no_python_leaves_the_others(command, folder):
    (folder / "a.ipynb").write_text(notebook("print 'old'", WRONG))
    _, out, _ = command("lint", "--format", "json", "a.ipynb")
    found = [(one["code"], one["cell"]) for one in json.loads(out)]
    assert found == [("NNS901", 1), ("NNS102", 2)]


UNSAVED = """\
import torch\r
with model.trace("é"):\r
    hidden = model.transformer.h[0].output\r
    total = model.lm_head.output + 1\r
    before = model.transformer.h[1].output.save()\r
    model.transformer.h[1].output[:] = 0\r
print(hidden, total, before)\r
"""


def test_safe_fixes_are_made_and_nothing_else(command, folder):
    path = folder / "wrong.py"
    path.write_bytes(UNSAVED.replace("lm_head", "wte").encode())
    status, out, _ = command("lint", "--format", "json", ".")
    assert [one["fixable"] for one in json.loads(out)] == [True] * 3
    status, out, _ = command("lint", "--fix", ".")
    assert (status, out) == (0, "nothing found\n")
    expected = (
        UNSAVED.replace("lm_head", "wte")
        .replace("h[0].output\r", "h[0].output.save()\r")
        .replace("model.wte.output + 1", "(model.wte.output + 1).save()")
        .replace("output.save()\r\n    model", "output.clone().save()\r\n    model")
    )
    assert path.read_bytes().decode() == expected


def test_what_cannot_be_fixed_is_left(command, folder):
    (folder / "wrong.py").write_text(WRONG)
    status, _, _ = command("lint", "--fix", ".")
    assert status == 1
    assert (folder / "wrong.py").read_text() == WRONG


def test_an_unchanged_file_is_not_linted_again(command, folder, monkeypatch):
    (folder / "wrong.py").write_text(WRONG)
    first = command("lint", ".")
    monkeypatch.setattr("nnsight_dsl.lint.incremental.lint", None)
    assert command("lint", ".") == first
    (folder / "wrong.py").write_text(RIGHT)
    with pytest.raises(TypeError):
        command("lint", ".")


def test_a_broken_cache_is_made_anew(command, folder, cache):
    (folder / "wrong.py").write_text(WRONG)
    first = command("lint", ".")
    for path in (cache / "nnsight_dsl" / "lint").iterdir():
        path.write_text('{"half of')
    assert command("lint", ".") == first


def test_many_files_are_shared_between_processes(command, folder):
    for number in range(4):
        (folder / f"wrong{number}.py").write_text(WRONG + f"# {number}\n" + "# text\n" * 10_000)
    status, out, _ = command("lint", "--format", "json", ".")
    assert [one["file"] for one in json.loads(out)] == [f"wrong{number}.py" for number in range(4)]


def test_the_command_needs_neither_torch_nor_libcst(folder):
    (folder / "wrong.py").write_text(WRONG)
    script = (
        "import sys; from nnsight_dsl.cli import main; status = main(['lint', '.']);"
        "print(status, {'torch', 'transformers', 'libcst'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, check=True
    )
    assert done.stdout.splitlines()[-1] == "1 set()"


@pytest.mark.parametrize("word", ["NNS102", "nns102", "child-after-parent"])
def test_a_rule_is_explained(command, word):
    status, out, _ = command("rule", word)
    assert status == 0
    assert out == (ROOT / "docs" / "rules" / "NNS102.md").read_text()


def test_a_rule_that_does_not_exist(command):
    status, out, err = command("rule", "NNS999")
    assert (status, out) == (2, "")
    assert "NNS999 is not a rule" in err


def test_the_hook_for_pre_commit_names_a_command_that_exists():
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    assert "entry: nnsight-dsl lint\n" in text and "language: python\n" in text
