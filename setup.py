"""The one thing that pyproject.toml cannot say: a file for the top of site-packages.

`nnsight_dsl_startup.pth` has the line that Python runs when it starts; see
`nnsight_dsl/compat/switching.py`. An editable install has it, too.
"""

from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

STARTUP = "nnsight_dsl_startup.pth"


class BuildWithStartup(build_py):
    """Puts the file beside the packages."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(STARTUP, str(Path(self.build_lib, STARTUP)))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that the command has made."""
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib, STARTUP))]


class EditableWithStartup(editable_wheel):
    """Puts the file beside the one that leads to the checkout."""

    def _select_strategy(self, *args: Any) -> Any:
        strategy = super()._select_strategy(*args)

        class WithStartup:
            def __enter__(self) -> Any:
                strategy.__enter__()
                return self

            def __exit__(self, *error: Any) -> Any:
                return strategy.__exit__(*error)

            def __call__(self, wheel: Any, files: Any, mapping: Any) -> None:
                strategy(wheel, files, mapping)
                wheel.writestr(STARTUP, Path(STARTUP).read_text())

        return WithStartup()


setup(cmdclass={"build_py": BuildWithStartup, "editable_wheel": EditableWithStartup})
