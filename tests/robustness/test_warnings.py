"""Warnings and logged deprecations of other libraries fail a test, wherever they come up.

The tests in ``WARNING_TESTS`` are run by pytest in a process of their own, with the settings and the conftest of this
suite; each is expected to fail, but for the one in which nothing warns.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


# What is logged before any test is held against the first one, which is of the file that logs.
IMPORTED = {
    "test_it_raises.py": "import warnings\nwarnings.warn('going away', FutureWarning)",
    "test_it_logs.py": "import logging\nlogging.getLogger('peft').warning('`that` is deprecated')",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest, in a process of its own, shows of the tests as if they were of this suite."""
    folder = tmp_path_factory.mktemp("tests")
    (folder / "test_of_warnings.py").write_text(WARNING_TESTS)
    for name, start in IMPORTED.items():
        (folder / name).write_text(f"{start}\n\n\ndef test_{name[8:-3]}():\n    pass\n")
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
    ).stdout


def test_what_warns_fails_and_nothing_else(shown: str) -> None:
    ends = re.findall(r"^(FAILED|ERROR|PASSED) .*test_of_warnings\.py::(test_\w+(?:\[.*?\])?)", shown, re.MULTILINE)
    failed = {name for outcome, name in ends if outcome != "PASSED"}
    assert len({name for _, name in ends}) == 16, shown
    assert {name for _, name in ends} - failed == {"test_nothing_warns"}, shown


def test_what_warns_as_a_test_file_is_imported_fails(shown: str) -> None:
    errors = dict(re.findall(r"^ERROR .*?(test_it_\w+\.py).*? - (\w+): ", shown, re.MULTILINE))
    assert errors == {"test_it_raises.py": "FutureWarning", "test_it_logs.py": "AssertionError"}, shown
