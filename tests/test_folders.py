"""Output folders are whole or absent; companions go along, weights and the rest do not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_projclust.folders import check_apart, check_output, companions, copy_companions, new_folder


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "output"
    with new_folder(output) as folder:
        (folder / "a").write_text("1")
        assert not output.exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["output"]
    assert (output / "a").read_text() == "1"
    assert output.stat().st_mode & 0o777 == (tmp_path / "deep").stat().st_mode & 0o777


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_old", [True, False])
def test_an_error_or_interrupt_leaves_everything_as_it_was(tmp_path: Path, error: type, is_old: bool) -> None:
    output = tmp_path / "output"
    if is_old:
        output.mkdir()
        (output / "old").write_text("kept")

    def fail() -> None:
        with new_folder(output) as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == (["output"] if is_old else [])
    if is_old:
        assert [path.name for path in output.iterdir()] == ["old"]


def test_a_folder_that_is_replaced_holds_only_the_new(tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "old").write_text("gone")
    with new_folder(output, force=True) as folder:
        (folder / "new").write_text("1")
    assert [path.name for path in output.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [output]


def test_outputs_that_would_lose_something_are_refused(tmp_path: Path) -> None:
    full, source = tmp_path / "full", tmp_path / "models" / "source"
    full.mkdir()
    source.mkdir(parents=True)
    (full / "file").write_text("x")
    with pytest.raises(
        FileExistsError, match=r"holds 1 files or folders; expected a folder.*or replace it with --force"
    ):
        check_output(full, source, force=False)
    check_output(full, source, force=True)
    check_output(tmp_path / "new", source, force=False)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty", source, force=False)
    for output in (source, source.parent, tmp_path / "models" / ".." / "models", Path(), Path("..")):
        with pytest.raises(ValueError, match="which is in use; expected a folder elsewhere.*Choose"):
            check_output(output, source, force=True)
    with pytest.raises(FileExistsError, match="is a file; expected a folder.*Choose another"):
        check_output(full / "file", source, force=True)


def test_a_checkpoint_and_an_output_are_apart_whether_they_are_there_or_not(tmp_path: Path) -> None:
    output = tmp_path / "output"
    for _ in range(2):
        for checkpoint in (output, output / "saved", tmp_path, tmp_path / "other" / ".." / "output"):
            with pytest.raises(ValueError, match="one folder, or one is in the other; expected two.*Choose another"):
                check_apart(output, checkpoint)
        check_apart(output, tmp_path / "output-saved")
        output.mkdir(exist_ok=True)


def test_what_was_put_there_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "output"):
            (tmp_path / "output").mkdir()
            (tmp_path / "output/theirs").write_text("kept")

    with pytest.raises(FileExistsError, match="holds 1 files"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert (tmp_path / "output/theirs").read_text() == "kept"


def test_a_parent_that_is_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PermissionError, match="cannot be made in .*expected a folder that may be written to.*Choose"):
        check_output(tmp_path / "file" / "output", "org/model", force=False)


def test_companions_go_along_and_nothing_else(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    companions = [
        "tokenizer.json",
        "vocab.txt",
        "spiece.model",
        "chat_template.jinja",
        "source.spm",
        "bpe.codes",
        "LICENSE",
        "modules.json",
    ]
    companions += ["preprocessor_config.json", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    others = [
        "model.safetensors",
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "model.safetensors.index.json",
    ]
    others += ["config.json", "generation_config.json", "README.md", ".git/config", "onnx/model.onnx", "data.csv"]
    others += ["checkpoint-5/config.json", "trainer_state.json", ".hidden.json", "3_runs/a.json"]
    for name in companions + others:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    paths = ["", "1_Pooling", "2_Dense"]
    (source / "modules.json").write_text(json.dumps([{"path": path} for path in paths]))
    target.mkdir()
    (target / "tokenizer.json").write_text("the model's own")
    copy_companions(source, target)
    copied = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert copied == set(companions)
    assert (target / "tokenizer.json").read_text() == "the model's own"


@pytest.mark.parametrize("content", ["{", '["a"]', "[{}]", '[{"path": 1}]', "3"])
def test_a_damaged_list_of_modules_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(ValueError, match=r"modules.json' cannot be read .* save the folder again"):
        companions(tmp_path)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_command_leaves_no_output_folder(tmp_path: Path, signal_number: int) -> None:
    """The process is stopped while it writes; the output folder must not be there at all."""
    code = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
from hf_projclust.folders import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "output")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        os.kill(process.pid, signal_number)
        assert process.wait(timeout=30) != 0
    assert not (tmp_path / "output").exists()
    left = list(tmp_path.iterdir())
    assert len(left) == (0 if signal_number == signal.SIGINT else 1)
    assert all(path.name.startswith(".output.") for path in left)
