"""A short round of each fuzzer, by the command that runs a long one."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris is not installed")


@pytest.mark.parametrize("name", ["fuzz_config", "fuzz_safetensors"])
def test_a_short_round_finds_nothing(name: str) -> None:
    script = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, str(script), "--runs", "150", "--seconds", "60", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{name}: ")
    assert done.stdout.endswith("seed 7: no failure\n")
