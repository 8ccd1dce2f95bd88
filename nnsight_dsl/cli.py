"""The command line: `nnsight-dsl`, or `python -m nnsight_dsl`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnsight_dsl.compat import switching


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    0: done; 1: nothing to show, or the linter has found something; 2: unusable arguments.
    """
    parser = argparse.ArgumentParser(
        prog="nnsight-dsl", description="Read and change the inside of a running model."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a script with all its blocks lowered beforehand")
    _add_run_arguments(run)
    shown = commands.add_parser("explain", help="show the states of the blocks of a file")
    shown.add_argument("place", metavar="FILE[:LINE]")
    shown.add_argument("--mermaid", action="store_true", help="as a Mermaid diagram")
    from nnsight_dsl.lint.commands import add_arguments, show_rule
    from nnsight_dsl.lint.commands import run as lint

    add_arguments(commands.add_parser("lint", help="look for what is wrong with blocks"))
    rule = commands.add_parser("rule", help="explain a rule of the linter")
    rule.add_argument("code", metavar="CODE", help="as NNS101; 'all' lists them")
    commands.add_parser("server", help="a language server that lints as files are edited")
    head, rest = _before_the_scripts(list(sys.argv[1:] if arguments is None else arguments))
    given = parser.parse_args(head)
    if given.command == "lint":
        return lint(given)
    if given.command == "rule":
        return show_rule(given.code)
    if given.command == "server":
        from nnsight_dsl.lint.server import serve

        return serve()
    if given.command == "run":
        if (given.script is None) == (given.module is None):
            run.error("give a script, or a module by -m")
        return _run(given, rest)
    return _explain(given.place, as_mermaid=given.mermaid)


def _add_run_arguments(run: argparse.ArgumentParser) -> None:
    for option, version in switching.options().items():
        run.add_argument(
            option,
            dest="as_nnsight",
            action="store_const",
            const=version,
            help=f"let 'import nnsight' import this package, in a program for nnsight {version}",
        )
    run.add_argument("-m", dest="module", metavar="MODULE", help="run a module or a package")
    run.add_argument("script", type=Path, nargs="?", help="and behind it, its arguments")


def _before_the_scripts(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments of `run` behind the script or module, whose own the rest are."""
    if not arguments or arguments[0] != "run":
        return arguments, []
    end = 1
    while end < len(arguments) and arguments[end].startswith("-") and arguments[end] != "-m":
        end += 1
    end += 2 if arguments[end : end + 1] == ["-m"] else 1
    return arguments[:end], arguments[end:]


def _run(given: argparse.Namespace, arguments: Sequence[str]) -> int:
    from nnsight_dsl.blocks.script import run_module, run_script

    version = given.as_nnsight or switching.asked_for()
    if version is not None:
        switching.switch(version)
    if given.module is not None:
        run_module(given.module, arguments)
    else:
        run_script(given.script, arguments)
    return 0


def _explain(place: str, *, as_mermaid: bool) -> int:
    from nnsight_dsl.studies.explain import explain, mermaid, programs_in

    name, colon, number = place.rpartition(":")
    has_line = bool(colon) and number.isdigit()
    path = Path(name if has_line else place)
    if not path.is_file():
        print(f"{path} is not a file; give a Python file, and a line if you like", file=sys.stderr)
        return 2
    programs = programs_in(path, int(number) if has_line else None)
    if not programs:
        print(f"{place} holds no block; a block begins with 'with model.trace(...):'")
        return 1
    for program in programs:
        print(mermaid(program) if as_mermaid else explain(program, colour=sys.stdout.isatty()))
    return 0
