"""Warnings and logged deprecations of other libraries fail a test, wherever they come up.

The tests in ``WARNING_TESTS`` are run by pytest in a process of their own, with the settings and the conftest of this
suite; each is expected to fail, but for the one in which nothing warns.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

WARNING_TESTS = """
import logging
import warnings

import pytest
import torch
from conftest import TINY_MODELS, run_cli, run_python
from transformers import BertConfig

from hf_projclust import cli


def test_nothing_warns():
    TINY_MODELS["bert"].compressed()
    assert run_python("import transformers; print(1)") == "1\\n"


@pytest.mark.parametrize("category", [FutureWarning, DeprecationWarning, PendingDeprecationWarning, UserWarning])
def test_raised(category):
    warnings.warn("going away", category)


def test_raised_by_torch_in_cpp():
    torch.ones(1, 2, 3).T


def test_raised_by_torch_in_cpp_again():  # torch itself says it once a process
    torch.ones(1, 2, 3).T


def test_logged_by_transformers():
    BertConfig().torch_dtype


def test_logged_by_transformers_again():  # Transformers itself says it once a process
    BertConfig().torch_dtype


@pytest.mark.parametrize("library", ["accelerate", "huggingface_hub", "peft", "torch"])
def test_logged_by(library):
    logging.getLogger(f"{library}.some.part").warning("`that` will be removed in version 9; use `this`")


def test_raised_in_a_child_process():
    run_python("import warnings; warnings.warn('going away', DeprecationWarning)")


def test_raised_in_a_process_of_a_child_process():
    code = "import warnings; warnings.warn('going away', FutureWarning)"
    run_python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)")


def test_raised_by_a_command():
    @cli.app.command()
    def warn():
        warnings.warn("going away", FutureWarning)

    run_cli("warn", code=1)  # the exit code of an error that the command knows
"""


def run_pytest(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests in a process of their own as if they were of this suite."""
    (folder / "test_of_warnings.py").write_text(tests)
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "conftest", "-p", "no:cacheprovider", "-q", "-rA", "--tb=no"]
    options += ["--continue-on-collection-errors"]
    paths = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "PYTEST_ADDOPTS")}
        | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_what_warns_fails_and_nothing_else(tmp_path: Path) -> None:
    shown = run_pytest(tmp_path, WARNING_TESTS).stdout
    outcomes = dict(re.findall(r"^(?:FAILED|ERROR|PASSED) .*::(test_\w+(?:\[.*?\])?)()", shown, flags=re.MULTILINE))
    failed = set(re.findall(r"^(?:FAILED|ERROR) .*::(test_\w+(?:\[.*?\])?)", shown, flags=re.MULTILINE))
    assert len(outcomes) == 16, shown
    assert outcomes.keys() - failed == {"test_nothing_warns"}, shown


def test_what_warns_as_a_test_file_is_imported_fails(tmp_path: Path) -> None:
    test = "\n\ndef test_nothing():\n    pass\n"
    (tmp_path / "test_it_raises.py").write_text(f"import warnings\nwarnings.warn('going away', FutureWarning){test}")
    logged = f"import logging\nlogging.getLogger('peft').warning('`that` is deprecated'){test}"
    shown = run_pytest(tmp_path, logged).stdout
    assert "1 passed, 2 errors" in shown, shown
