"""Saves: whole or absent, over anything that is there, with nothing lost beside them."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, equal_state_dicts
from few_bits import packed_model
from transformers import AutoModelForMaskedLM

from hf_projclust import saving_projclust, whole_folder_projclust
from hf_projclust.folders import new_folder
from hf_projclust.whole_folder_projclust import WholeFolder

BERT = TINY_MODELS["bert"]
SHARDED = {"max_shard_size": "8kB"}


@pytest.fixture
def mount() -> Any:
    """Mount by the options of the command, while a block runs; skipped where this process may not."""

    @contextlib.contextmanager
    def mounted(*options: object) -> Iterator[None]:
        try:
            done = subprocess.run(["mount", *map(str, options)], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"this process may not mount ({done.stderr.strip()})")
        try:
            yield
        finally:
            subprocess.run(["umount", str(options[-1])], check=True)

    return mounted


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def load(folder: Path) -> Any:
    return AutoModelForMaskedLM.from_pretrained(folder)


def test_processes_that_are_killed_leave_the_old_checkpoint_or_the_new() -> None:
    command = [sys.executable, str(Path(__file__).with_name("kill_saves.py")), "--kills", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in result.stdout.splitlines() if "kills," in line]
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(lines) == 6
    for line in lines[1::2]:  # before each change: some before the new one is in place, and some after
        assert "'old': " in line
        assert "'new': " in line


@pytest.mark.parametrize("make", [BERT.compressed, lambda: packed_model("bert")], ids=["float", "few bits"])
@pytest.mark.parametrize("options", [{}, SHARDED], ids=["one file", "shards"])
def test_a_model_is_saved_over_the_folder_that_it_was_loaded_from(make: Any, options: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "out", **options)
    model, before = load(tmp_path / "out"), set(files(tmp_path / "out"))
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for again in ({}, SHARDED):
        model.save_pretrained(tmp_path / "out", **again)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        assert equal_state_dicts(load(tmp_path / "out"), model)
    load(tmp_path / "out").save_pretrained(tmp_path / "out", **options)
    assert set(files(tmp_path / "out")) == before


def test_shards_and_one_file_take_the_place_of_each_other_and_other_files_stay(tmp_path: Path) -> None:
    other, model = BERT.compressed(seed=1), BERT.compressed()
    kept = {"notes.txt": b"1", "adapter_model.safetensors": b"2", "1_Pooling/config.json": b"3", "runs/a/events": b"4"}
    for first, second in (({}, SHARDED), (SHARDED, {})):
        folder = tmp_path / str(bool(first))
        other.save_pretrained(folder, **first)
        for name, content in kept.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        model.save_pretrained(folder, **second)
        assert equal_state_dicts(load(folder), model)
        assert kept.items() <= files(folder).items()
        model.save_pretrained(tmp_path / "alone", **second)
        assert set(files(folder)) == set(files(tmp_path / "alone")) | set(kept)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_save_that_fails_leaves_all_as_it_was(is_there: bool, tmp_path: Path) -> None:
    if is_there:
        BERT.compressed(seed=1).save_pretrained(tmp_path / "out")
    before = files(tmp_path)
    with pytest.raises(
        ValueError, match="Unit .* not supported"
    ):  # which is read when the configuration is written already
        BERT.compressed().save_pretrained(tmp_path / "out", max_shard_size="8 apples")
    assert files(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == ({"out"} if is_there else set())


def test_a_process_that_leaves_the_files_to_another_writes_none(tmp_path: Path) -> None:
    BERT.compressed().save_pretrained(tmp_path / "out", is_main_process=False)
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_what_another_process_writes_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, exchange = tmp_path / "out", whole_folder_projclust.exchange
    folder.mkdir()
    (folder / "rng_state_0.pth").write_text("0")

    def exchange_late(one: Path, other: Path) -> bool:
        (folder / "rng_state_1.pth").write_text("1")
        (folder / "runs").mkdir()
        (folder / "runs/events").write_text("2")
        return exchange(one, other)

    monkeypatch.setattr(whole_folder_projclust, "exchange", exchange_late)
    with (folder / "rng_state_0.pth").open("a") as open_before:
        BERT.compressed().save_pretrained(folder)
        open_before.write("0")
    found = files(folder)
    assert (found["rng_state_0.pth"], found["rng_state_1.pth"], found["runs/events"]) == (b"00", b"1", b"2")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def in_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return Path()


def without_the_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(whole_folder_projclust, "exchange", lambda *_: False)
    return folder


def by_a_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.with_name("link").symlink_to(folder)
    return folder.with_name("link")


@pytest.mark.parametrize("named", [in_current_folder, without_the_step, by_a_link])
@pytest.mark.parametrize("is_empty", [True, False])
def test_folders_that_cannot_be_replaced_or_are_reached_otherwise_get_the_files_too(
    named: Any, is_empty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = BERT.compressed(), tmp_path / "out"
    folder.mkdir()
    if not is_empty:
        BERT.compressed(seed=1).save_pretrained(folder, **SHARDED)
        (folder / "notes.txt").write_text("1")
    model.save_pretrained(named(folder, monkeypatch))
    model.save_pretrained(tmp_path / "alone")
    assert set(files(folder)) == set(files(tmp_path / "alone")) | (set() if is_empty else {"notes.txt"})
    assert equal_state_dicts(load(folder), model)
    assert not [path for path in (*tmp_path.iterdir(), *folder.iterdir()) if path.name.startswith(".")]
    if named is in_current_folder:
        assert Path("config.json").is_file()


def test_a_folder_that_is_replaced_in_two_steps_is_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_projclust.folders.exchange", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with new_folder(tmp_path / "out", force=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_folders_within_are_not_touched(tmp_path: Path) -> None:
    """A Trainer tells its checkpoints apart by their times; another process may be in one, and one may be a mount."""
    folder = tmp_path / "out"
    for name in ("checkpoint-1", "checkpoint-2"):
        (folder / name).mkdir(parents=True)
        os.utime(folder / name, (1, 1))
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime) for path in folder.iterdir()}
    BERT.compressed().save_pretrained(folder)
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime) for path in folder.iterdir() if path.is_dir()}
    assert after == before


@pytest.mark.parametrize("place", ["out", "out/data"])
def test_a_mount_point_keeps_what_is_in_it(place: str, tmp_path: Path, mount: Any) -> None:
    folder, volume = tmp_path / "out", tmp_path / "volume"
    (tmp_path / place).mkdir(parents=True)
    volume.mkdir()
    (volume / "precious.txt").write_text("1")
    with mount("--bind", volume, tmp_path / place):
        BERT.compressed().save_pretrained(folder)
        assert (volume / "precious.txt").read_text() == "1"
        assert (tmp_path / place / "precious.txt").exists()
        assert equal_state_dicts(load(folder), BERT.compressed())
    assert {path.name for path in tmp_path.iterdir()} == {"out", "volume"}


@pytest.mark.parametrize("error", [OSError(1, "no"), NotImplementedError("no")], ids=["OSError", "NotImplementedError"])
def test_files_that_can_have_no_second_name_stay_where_they_are(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/large.bin").touch()
    before = (tmp_path / "out/large.bin").stat().st_ino

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(os, "link", refuse)
    BERT.compressed().save_pretrained(tmp_path / "out")
    assert (tmp_path / "out/large.bin").stat().st_ino == before
    assert equal_state_dicts(load(tmp_path / "out"), BERT.compressed())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_threads_save_one_model_at_once(tmp_path: Path) -> None:
    model = BERT.compressed()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: model.save_pretrained(tmp_path / str(number % 4), **SHARDED), range(24)))
    for folder in tmp_path.iterdir():
        assert equal_state_dicts(load(folder), model)


def test_a_name_of_any_length_is_a_folder_to_save_in(tmp_path: Path) -> None:
    BERT.compressed().save_pretrained(tmp_path / ("n" * 250))
    assert [len(path.name) for path in tmp_path.iterdir()] == [250]


def test_a_file_is_no_folder_to_save_in(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="out' is a file; expected a folder to save in. Choose another"):
        BERT.compressed().save_pretrained(tmp_path / "out")
    assert files(tmp_path) == {"out": b"mine"}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_modes_follow_the_umask_and_a_private_folder_stays_private(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        BERT.compressed().save_pretrained(tmp_path / "out", standalone=True)
        private = tmp_path / "private"
        private.mkdir(mode=0o700)
        (private / "notes.txt").touch()
        with WholeFolder.saved(private) as save:
            assert stat.S_IMODE(save.partial.stat().st_mode) == 0o700
            (save.partial / "config.json").touch()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(tmp_path: Path, mount: Any) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", disk):
        old, new = BERT.compressed(seed=1), BERT.compressed()
        old.save_pretrained(disk / "out")
        before = files(disk)
        (disk / "ballast").write_bytes(bytes(20_000))
        with pytest.raises(OSError, match=r"the disk of '.*out' is full, with [\d,]+ bytes free; .* as it was\. Free"):
            new.save_pretrained(disk / "out")
        assert {name: content for name, content in files(disk).items() if name != "ballast"} == before
        (disk / "ballast").unlink()
        new.save_pretrained(disk / "out")
        assert equal_state_dicts(load(disk / "out"), new)


def test_no_save_is_under_way_after_one_that_ended_or_failed(tmp_path: Path) -> None:
    model = TINY_MODELS["bert"].compressed()
    model.save_pretrained(tmp_path / "one")
    assert saving_projclust._SAVE.get() is None
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        model.save_pretrained(tmp_path / "file")
    assert saving_projclust._SAVE.get() is None
