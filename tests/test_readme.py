"""What README promises: its code runs, its commands run, its figures are those that the demonstration gives."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_MODELS
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from hf_projclust import cli
from hf_projclust.demo import DemoRow

ROOT = Path(__file__).parents[1]
WITHOUT_GPU = "ignore:'pin_memory' argument is set as true but no accelerator is found:UserWarning"  # any Trainer's
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def base(tmp_path: Path, tokenizer) -> Path:
    """A tiny model in a folder whose relative name is the Hub id that README uses."""
    folder = tmp_path / "distilbert" / "distilbert-base-uncased"
    TINY_MODELS["distilbert"].build().distilbert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_python_blocks_run_one_after_another(base: Path, tmp_path: Path) -> None:
    found = blocks("python")
    assert len(found) == 2
    for block in found:
        done = subprocess.run(
            [sys.executable, "-c", block],
            env=os.environ | {"PYTHONWARNINGS": f"{os.environ['PYTHONWARNINGS']},{WITHOUT_GPU}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert len(found[0].split("\n\n")[-2].splitlines()) <= 6
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "distilbert-pc60-films")
    assert type(tuned).__name__ == "ProjClustDistilBertForSequenceClassification"


@pytest.mark.usefixtures("signed_in")
def test_commands_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("hf-projclust ")]
    names = ["compress", "info", "decompress", "compress", "evaluate", "recover", "push"]
    assert [shlex.split(command)[1] for command in commands] == names
    (tmp_path / "corpus.txt").write_text("good film\nbad film\n")
    for command in commands:
        command = command.replace("--ratio 16", "--ratio 3")  # a tiny table has no room for more
        result = CliRunner().invoke(cli.app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output


def test_every_workflow_names_tests_that_are_there() -> None:
    workflows = README.partition("## Workflows")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in workflows.splitlines() if re.match(r"\| [^*-]", line)][1:]
    defined = {
        name: path.parent.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(rows) > 40
    for workflow, _, shown in rows:
        names = re.findall(r"`(test_\w+)`", shown)
        assert names or "pytest -m sweep" in shown or "nothing needs" in _, workflow
        folder = re.search(r"\((\w+)\)$", shown.strip())
        for name in names:
            assert defined.get(name) == (folder[1] if folder else "workflows"), name


def test_set_up_is_two_commands_and_continuous_integration_runs_the_second() -> None:
    demo, tests = (block.strip() for block in blocks("bash")[:2])
    assert demo.endswith("&& hf-projclust demo")
    assert tests.partition(" && ")[2].split()[0] == "pytest"
    assert "\n" not in demo + tests
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    pattern = re.search(r"grep -m 1 -E '(.*?)'", script)
    assert pattern
    assert [line for line in README.splitlines() if re.search(pattern[1], line)] == [tests]


def test_figures_are_those_of_the_demonstration(demonstration: tuple[Path, dict[str, DemoRow]]) -> None:
    _, rows = demonstration
    lines = re.findall(
        r"^\| (dense|SVD|MESSI|adaptive).*?\| ([\d,]+) \| ([\d.]+) MB \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE
    )
    assert len(lines) == 4
    for (_, parameters, megabytes, error, cosine), row in zip(lines, rows.values(), strict=True):
        assert parameters == f"{row.sizes.table_parameters:,}"
        assert megabytes == f"{row.sizes.model_disk_bytes / 1e6:.1f}"
        # Another machine rounds differently, and then clusters a little differently.
        assert float(error) == pytest.approx(row.relative_squared_error, abs=3e-3)
        assert float(cosine) == pytest.approx(row.cosine, abs=0.01)
