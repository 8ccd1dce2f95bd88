"""A pytest option that installs the import hook: `--nnsight-dsl-packages=one,two`."""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Add the option."""
    group = parser.getgroup("nnsight_dsl")
    group.addoption(
        "--nnsight-dsl-packages",
        default="",
        help="comma-separated packages whose blocks are lowered when they are imported",
    )


def pytest_configure(config: Any) -> None:
    """Install the import hook for the packages that were named."""
    packages = [name for name in config.getoption("nnsight_dsl_packages").split(",") if name]
    if packages:
        from nnsight_dsl.blocks.import_hook import install_import_hook

        install_import_hook(*packages)
