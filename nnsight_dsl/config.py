"""Settings that hold for the whole process, and can be kept for the next ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_KEPT = ("DEBUG", "CROSS_INVOKER", "PYMOUNT", "REMOTE_LOGGING", "LINT")
_LINT = ("error", "warn", "off")


class AppConfig:
    """Settings of the programming model.

    Attributes:
        CROSS_INVOKER: let an invoke read names that another invoke of its trace binds.
        PYMOUNT: accepted for programs that set it; `.save()` needs nothing mounted here.
        REMOTE_LOGGING: accepted for programs that set it.
        LINT: how a run treats the linter's findings in its block, before the model runs:
            `"error"` raises certain ones and warns of the others, `"warn"` warns of all, `"off"`
            checks nothing.
    """

    def __init__(self) -> None:
        self.CROSS_INVOKER = True
        self.PYMOUNT = True
        self.REMOTE_LOGGING = True
        self.LINT = "error"
        self._debug = False

    def __setattr__(self, name: str, value: Any) -> None:
        # a plain attribute, since each run looks at it
        if name == "LINT" and value not in _LINT:
            raise ValueError(f"LINT is one of {', '.join(map(repr, _LINT))}; {value!r} is none")
        super().__setattr__(name, value)

    @property
    def DEBUG(self) -> bool:
        """Show this package's own frames in tracebacks."""
        return self._debug

    @DEBUG.setter
    def DEBUG(self, value: bool) -> None:
        from nnsight_dsl.runtime.tracebacks import show_all_frames

        self._debug = bool(value)
        show_all_frames(self._debug)


class Config:
    """`CONFIG.APP` holds the settings of the programming model."""

    def __init__(self) -> None:
        self.APP = AppConfig()
        self.load()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"CONFIG has no {name!r}; its settings are those of CONFIG.APP (remote execution, "
            "which an API key would be for, is not built)"
        )

    @property
    def path(self) -> Path:
        """The file that `save` writes, in the user's folder for settings."""
        folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(folder) / "nnsight_dsl" / "config.json"

    def save(self) -> None:
        """Keep the settings for later processes of this user."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: getattr(self.APP, name) for name in _KEPT}
        self.path.write_text(json.dumps(kept, indent=2) + "\n")

    def load(self) -> None:
        """Take over the settings that were kept, where there are any."""
        try:
            kept: Any = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return
        for name in _KEPT:
            value = kept.get(name) if isinstance(kept, dict) else None
            # DEBUG loads the runtime, so it is only set where it differs
            is_fit = value in _LINT if name == "LINT" else isinstance(value, bool)
            if is_fit and getattr(self.APP, name) != value:
                setattr(self.APP, name, value)


CONFIG = Config()
