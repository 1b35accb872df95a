"""Run a command; if it fails, raise its output."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tools import ROOT

TIMEOUT = 660  # seconds; an installation on Kubernetes may wait for ten minutes


def run_command(
    *command: str, cwd: Path = ROOT, env: Mapping[str, str] = os.environ, stdin: str = ""
) -> str:
    """Run a command, and return its output; raise AssertionError with the output if it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
