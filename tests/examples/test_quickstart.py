"""The quickstart runs as it stands, and checks its own claims."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_quickstart_runs_and_its_claims_hold():
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "The Colosseum is in the city of Paris, in France." in done.stdout


def test_quickstart_fails_where_a_claim_does_not_hold(tmp_path):
    # patching that is undone before the answer is read does not flip it
    text = (EXAMPLES / "quickstart.py").read_text()
    broken = text.replace(
        "model.transformer.h[number].output[:, -1] = eiffel", "eiffel = eiffel * 1"
    ).replace("Path(__file__).parent", f"Path({str(EXAMPLES)!r})")
    assert broken != text
    script = tmp_path / "broken.py"
    script.write_text(broken)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "not as claimed: patched late" in done.stderr
