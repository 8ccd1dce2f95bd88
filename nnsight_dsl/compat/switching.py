"""The switch in one line: an environment variable, which other processes inherit.

    NNSIGHT_DSL_AS_NNSIGHT=1 python script.py           # or =0.6

Python runs a line of `nnsight_dsl_startup.pth`, which the installed package has beside it, when it
starts; that line comes here if the variable is set. A checkout that is not installed has no such
file. So `hand_on`, with which the command line and pytest let their children inherit the switch,
puts the folder `startup` on PYTHONPATH as well, whose `sitecustomize.py` does the same.

A process that never imports `nnsight` pays for a finder, and imports no torch.
"""

from __future__ import annotations

import os
import site
from pathlib import Path

from nnsight_dsl.compat.installing import VERSIONS, install

VARIABLE = "NNSIGHT_DSL_AS_NNSIGHT"
STARTUP_FILE = "nnsight_dsl_startup.pth"
OPTION = "--as-nnsight"

_OFF = ("", "0", "false", "no", "off")
_ON = ("1", "true", "yes", "on")


def options() -> dict[str, str]:
    """Return the spellings of the option `--as-nnsight`, each with its version."""
    return {OPTION: "0.8", **{f"{OPTION}={version}": version for version in VERSIONS}}


def asked_for() -> str | None:
    """Return the version that the environment variable names, None if it is off.

    Raises:
        ValueError: it has another value.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in _OFF:
        return None
    if value in _ON:
        return "0.8"
    if value not in VERSIONS:
        raise ValueError(
            f"{VARIABLE}={value!r} is not known; set it to 1, or to the version that the programs "
            f"were written for: {' or '.join(VERSIONS)}"
        )
    return value


def at_start() -> None:
    """Install it where the environment variable asks for it; a starting Python calls this."""
    version = asked_for()
    if version is not None:
        install(version, lazily=True)


def switch(version: str) -> None:
    """Install it in this process and in those that it starts.

    Args:
        version: as for `install`.
    """
    install(version)
    hand_on(version)


def hand_on(version: str) -> None:
    """Let the processes that this one starts install it, too: spawned workers, subprocesses."""
    os.environ[VARIABLE] = version
    if any(Path(folder, STARTUP_FILE).is_file() for folder in _site_folders()):
        return
    folder = str(Path(__file__).with_name("startup"))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, paths)])


def _site_folders() -> list[str]:
    return [*site.getsitepackages(), site.getusersitepackages()]
