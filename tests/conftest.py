"""Settle what would make a run depend on the machine, before a test imports anything heavy."""

import os
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# The suite uses the models that come with the repository; a lookup elsewhere is a defect.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tokenizer threads warn when a test starts a subprocess by forking.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The models here are too small for more, and threads that wait for each other on a busy machine
# take many times as long. torch reads this when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A user's settings, as DEBUG, are not the suite's.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="nnsight_dsl-settings-")

# The same examples in every run, and no failure for a machine that is busy.
settings.register_profile(
    "repository",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repository")


@pytest.fixture
def unlinted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs go as far as they get: nothing is found in a block before its run."""
    from nnsight_dsl import CONFIG

    monkeypatch.setattr(CONFIG.APP, "LINT", "off")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for a run that may take hours."""
    parser.addoption("--long", action="store_true", help="draw many more random blocks")
