"""Options of pytest: `--nnsight-dsl-packages=one,two` and `--as-nnsight`.

The first installs the import hook. The second lets `import nnsight` import this package, in the
tests, in their `conftest.py`, and in the processes that they start.
"""

from __future__ import annotations

from typing import Any

from nnsight_dsl.compat import switching


def pytest_addoption(parser: Any) -> None:
    """Add the options."""
    group = parser.getgroup("nnsight_dsl")
    group.addoption(
        "--nnsight-dsl-packages",
        default="",
        help="comma-separated packages whose blocks are lowered when they are imported",
    )
    for option, version in switching.options().items():
        group.addoption(
            option,
            dest="as_nnsight",
            action="store_const",
            const=version,
            help=f"let 'import nnsight' import nnsight_dsl, in tests written for nnsight {version}",
        )


def pytest_load_initial_conftests(early_config: Any) -> None:
    """Switch, before the first `conftest.py` is imported."""
    version = early_config.known_args_namespace.as_nnsight or switching.asked_for()
    if version is not None:
        switching.switch(version)


def pytest_configure(config: Any) -> None:
    """Install the import hook for the packages that were named."""
    packages = [name for name in config.getoption("nnsight_dsl_packages").split(",") if name]
    if packages:
        from nnsight_dsl.blocks.import_hook import install_import_hook

        install_import_hook(*packages)
