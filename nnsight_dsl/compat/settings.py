"""`nnsight.CONFIG`: this package's settings, and those of remote execution."""

from __future__ import annotations

from typing import Any

from nnsight_dsl import config


class AppConfig:
    """`CONFIG.APP`: the settings of `nnsight_dsl.CONFIG.APP`, by the same names.

    Attributes:
        DISABLE_CPP_BACKTRACE: accepted for programs that set it.
    """

    def __init__(self) -> None:
        self.__dict__["DISABLE_CPP_BACKTRACE"] = True

    def __getattr__(self, name: str) -> Any:
        return getattr(config.CONFIG.APP, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            self.__dict__[name] = value
            return
        # an unknown setting is an error in nnsight, too
        getattr(config.CONFIG.APP, name)
        setattr(config.CONFIG.APP, name, value)


class ApiConfig:
    """`CONFIG.API`: settings of remote execution, which is not built: no one asks for them.

    Attributes:
        HOST: where requests would be sent.
        APIKEY: key of the account.
        COMPRESS: whether requests would be compressed.
    """

    def __init__(self) -> None:
        self.HOST = "https://api.ndif.us"
        self.APIKEY: str | None = None
        self.COMPRESS = True


class Config:
    """`CONFIG` of programs written for nnsight."""

    def __init__(self) -> None:
        self.API = ApiConfig()
        self.APP = AppConfig()

    def set_default_api_key(self, api_key: str) -> None:
        """Set the key of remote execution for this process; it is not kept in a file.

        Args:
            api_key: key of the account.
        """
        self.API.APIKEY = api_key

    def save(self) -> None:
        """Keep the settings of `CONFIG.APP` for later processes of this user."""
        config.CONFIG.save()


CONFIG = Config()
