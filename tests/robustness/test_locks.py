"""One run at a time: a second run on a folder is refused with the name of the first, and a killed one is in no way."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import COMPRESSED, TINY_MODELS
from typer.testing import CliRunner

from hf_projclust import cli, compress
from hf_projclust.evaluation.protocol.plan import Protocol
from hf_projclust.evaluation.protocol.run import run_protocol
from hf_projclust.locks import locked
from hf_projclust.recovery import recover

HOLDS = "import sys, time; from hf_projclust.locks import locked; from pathlib import Path\n"
HOLDS += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the folder "out"."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def run_compress(tmp_path: Path, tokenizer: Any) -> None:
    compress(TINY_MODELS["bert"].build(), checkpoint=tmp_path / "out", **COMPRESSED)


def run_recover(tmp_path: Path, tokenizer: Any) -> None:
    tiny, texts = TINY_MODELS["bert"], ["good film"] * 8
    recover(tiny.compressed(), tiny.build(), tokenizer, texts, max_steps=1, checkpoint=tmp_path / "out")


def run_glue(tmp_path: Path, tokenizer: Any) -> None:
    run_protocol(Protocol(base="none", tasks=("rte",), data_dir=tmp_path), tmp_path / "out")


@pytest.mark.parametrize("run", [run_compress, run_recover, run_glue])
def test_a_second_run_is_refused_with_the_name_of_the_first(
    run: Callable[[Path, Any], None], holder: subprocess.Popen[str], tmp_path: Path, tokenizer: Any
) -> None:
    expected = (
        rf"/out' is being written by process {holder.pid} on .* since 20.* UTC; expected one run at a time\. Wait"
    )
    with pytest.raises(BlockingIOError, match=expected):
        run(tmp_path, tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == {".out.lock"}


@pytest.mark.parametrize("command", ["compress", "recover"])
def test_a_second_command_is_refused_too(
    command: str, holder: subprocess.Popen[str], base: Path, tmp_path: Path
) -> None:
    given = ["compress", str(base), "--rank", "4", "--token-counts", "uniform"]
    if command == "recover":
        compressed = tmp_path / "compressed"
        assert CliRunner().invoke(cli.app, [*given, "--output", str(compressed)]).exit_code == 0
        (tmp_path / "texts.txt").write_text("good film\n" * 20)
        given = ["recover", str(compressed), "--teacher", str(base), "--text", str(tmp_path / "texts.txt")]
    result = CliRunner().invoke(cli.app, [*given, "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert f"is being written by process {holder.pid} on" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_lock_of_a_killed_run_is_taken_over_and_goes_with_its_run(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".out.lock").exists()
    with locked(tmp_path / "out"):
        assert f"process {os.getpid()} on" in (tmp_path / ".out.lock").read_text()
        with pytest.raises(BlockingIOError, match=f"written by process {os.getpid()}"), locked(tmp_path / "out"):
            pass
        with locked(tmp_path / "other", None):
            pass
    assert not any(tmp_path.iterdir())


def test_of_many_processes_that_want_one_folder_one_at_a_time_has_it(tmp_path: Path) -> None:
    """Each that gets it makes a file that must not be there, and takes it away again."""
    turns = """
import sys, time
from pathlib import Path
from hf_projclust.locks import locked
folder, turns = Path(sys.argv[1]), 0
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with locked(folder / "out"):
            (folder / "taken").touch(exist_ok=False)
            (folder / "taken").unlink()
            turns += 1
    except BlockingIOError:
        time.sleep(0.001)
print(turns)
"""
    command = [sys.executable, "-c", turns, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(map(int, found)) > 10
