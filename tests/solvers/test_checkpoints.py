"""Checkpoints: an interrupted clustering goes on where it was, and what is no checkpoint of it is refused."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hf_projclust.solvers import Checkpoint, ProjectiveClustering, Rows, adaptive_ranks, cluster, equal_ranks

OWNER = {"rows": 200, "options": [1, "two", None]}
SETTINGS = {
    "equal ranks": {"num_clusters": 4, "rule": lambda k: equal_ranks(2)},
    "adaptive ranks": {"num_clusters": 4, "rule": lambda k: adaptive_ranks(700)},
    "several numbers of clusters": {"num_clusters": [1, 2, 4], "rule": lambda k: adaptive_ranks(700)},
    "below two": {"num_clusters": 3, "rule": lambda k: equal_ranks(2), "p": 1.0},
    "robust": {"num_clusters": 1, "rule": lambda k: equal_ranks(2), "p": 1.0},
}


def clustered(
    setting: str, checkpoint: Checkpoint | None = None, stop_after: int | None = None, seen: list | None = None
):
    """Cluster a random table, interrupted after so many rounds."""
    table = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = [] if seen is None else seen

    def on_round(cost: float) -> None:
        if math.isinf(cost):  # a start that is still being prepared, which is not saved
            return
        seen.append(cost)
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    options = {"num_starts": 3, "max_rounds": 30, "tolerance": 1e-5, **SETTINGS[setting]}
    return cluster(Rows(table), checkpoint=checkpoint, on_round=on_round, **options)


def assert_equal(left: ProjectiveClustering, right: ProjectiveClustering) -> None:
    assert torch.equal(left.assignment, right.assignment)
    assert left.costs == pytest.approx(right.costs)
    for a, b in zip(left.bases, right.bases, strict=True):
        torch.testing.assert_close(a.T @ a, b.T @ b, atol=1e-8, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(setting: str, share: float, tmp_path: Path) -> None:
    all_rounds: list[float] = []
    expected = clustered(setting, seen=all_rounds)
    stop_after = max(1, int(share * len(all_rounds)))
    with pytest.raises(KeyboardInterrupt):
        clustered(setting, Checkpoint(tmp_path / "run", OWNER), stop_after)
    rounds: list[float] = []
    result = clustered(setting, Checkpoint(tmp_path / "run", OWNER), seen=rounds)
    assert_equal(result, expected)
    assert len(rounds) == len(all_rounds) - stop_after


def test_a_run_interrupted_in_every_round_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    expected = clustered("equal ranks")
    for _ in range(100):
        try:
            result = clustered("equal ranks", Checkpoint(tmp_path / "run", OWNER), stop_after=1)
        except KeyboardInterrupt:
            continue
        break
    assert_equal(result, expected)


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    first = clustered("equal ranks", Checkpoint(tmp_path / "run", OWNER))
    rounds: list[float] = []
    again = clustered("equal ranks", Checkpoint(tmp_path / "run", OWNER), seen=rounds)
    assert rounds == []
    assert_equal(first, again)


def test_a_checkpoint_changes_no_result_and_leaves_nothing_partial(tmp_path: Path) -> None:
    plain = clustered("equal ranks")
    saved = clustered("equal ranks", Checkpoint(tmp_path / "a" / "run", OWNER))
    assert torch.equal(plain.assignment, saved.assignment)
    assert plain.costs == saved.costs
    names = {path.name for path in (tmp_path / "a" / "run").iterdir()}
    assert names == {"projclust-run.json", *(f"clusters-4-start-{number}.safetensors" for number in range(3))}
    assert json.loads((tmp_path / "a" / "run" / "projclust-run.json").read_text()) == OWNER


def test_a_write_that_fails_leaves_the_earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path / "run", OWNER)
    checkpoint.save("one", {"round": 1})

    def fail(tensors: dict, path: Path, metadata: dict) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hf_projclust.solvers.checkpoints.save_file", fail)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save("one", {"round": 2})
    again = Checkpoint(tmp_path / "run", OWNER)
    assert again.states == {"one": {"round": 1}}
    again.save("one", {"round": 3})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["one.safetensors", "projclust-run.json"]


def test_a_checkpoint_whose_first_write_was_cut_off_begins_again(tmp_path: Path) -> None:
    (tmp_path / ".projclust-run.json.partial").write_text('{"ro')
    assert Checkpoint(tmp_path, OWNER).states == {}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, OWNER).states == {}
    assert Checkpoint(str(tmp_path), OWNER).states == {}  # and again by its name


def test_tuples_in_the_owner_are_the_lists_that_json_makes_of_them(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "run", {"shape": (3, 4)})
    Checkpoint(tmp_path / "run", {"shape": [3, 4]})


@pytest.mark.parametrize(
    ("owner", "named"),
    [
        ({**OWNER, "rows": 201}, "rows differ"),
        ({"rows": 1, "options": []}, "options, rows differ"),
        ({**OWNER, "p": 1.0}, "p differ"),  # an option that the saved run had not
        ({"rows": 200}, "options differ"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused_and_kept(owner: dict, named: str, tmp_path: Path) -> None:
    Checkpoint(tmp_path / "run", OWNER).save("one", {"round": 1})
    with pytest.raises(ValueError, match="belongs to another run") as error:
        Checkpoint(tmp_path / "run", owner)
    for part in (
        str(tmp_path / "run"),
        f"another run: {named}",
        "expected the inputs and the options",
        "another folder",
    ):
        assert part in str(error.value)
    assert Checkpoint(tmp_path / "run", OWNER).states == {"one": {"round": 1}}


@pytest.mark.parametrize("content", [b"", b"{", b'{"rows": 2', b"\xff\xfe\x00", b"[]", b"3", b'"text"'])
def test_a_damaged_record_is_refused(content: bytes, tmp_path: Path) -> None:
    Checkpoint(tmp_path, OWNER)
    (tmp_path / "projclust-run.json").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as error:
        Checkpoint(tmp_path, OWNER)
    assert str(tmp_path) in str(error.value)
    assert "Delete the folder" in str(error.value)


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_state_that_was_cut_off_is_refused(kept: float, tmp_path: Path) -> None:
    clustered("equal ranks", Checkpoint(tmp_path, OWNER))
    path = tmp_path / "clusters-4-start-1.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="is damaged") as error:
        Checkpoint(tmp_path, OWNER)
    assert "expected one that an interrupted run left" in str(error.value)


@pytest.mark.parametrize("content", [b"no state at all", b"\x80\x02c__builtin__\neval\n."])
def test_a_state_of_something_else_is_refused_unread(content: bytes, tmp_path: Path) -> None:
    Checkpoint(tmp_path, OWNER)
    (tmp_path / "one.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        Checkpoint(tmp_path, OWNER)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"state": "{"},
        {"state": '{"costs": {"tensor": "1"}}'},
        {"state": '{"costs": {"tensor": 0}}'},
        {"state": "[]"},
        {"state": "[" * 10**5},
    ],
)
def test_a_state_that_lacks_a_part_is_refused(metadata: Any, tmp_path: Path) -> None:
    Checkpoint(tmp_path, OWNER)
    save_file({"0": torch.ones(2)}, tmp_path / "one.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match="is damaged"):
        Checkpoint(tmp_path, OWNER)


def test_a_state_is_read_as_it_was_saved(tmp_path: Path) -> None:
    shared = torch.arange(3)
    state = {"costs": [0.1, float("inf")], "best": {"one": shared, "other": [shared, None]}, "none": torch.empty(0, 2)}
    Checkpoint(tmp_path, OWNER).save("one", state)
    found = Checkpoint(tmp_path, OWNER).states["one"]
    assert found["costs"] == state["costs"]
    assert found["best"]["other"][1] is None
    assert torch.equal(found["best"]["one"], shared)
    assert torch.equal(found["best"]["other"][0], shared)
    assert found["none"].shape == (0, 2)


def test_a_folder_of_other_things_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(ValueError, match="holds other things") as error:
        Checkpoint(tmp_path, OWNER)
    for part in (f"checkpoint={str(tmp_path)!r}", "expected a folder that is new or empty", "Give another folder"):
        assert part in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_in_its_place_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text("precious")
    with pytest.raises(ValueError, match="holds other things"):
        Checkpoint(path, OWNER)
    assert path.read_text() == "precious"


def test_the_first_process_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_projclust.solvers.checkpoints.process_index", lambda: 1)
    Checkpoint(tmp_path / "run", OWNER).save("one", {})
    assert not (tmp_path / "run").exists()


def test_files_are_for_whom_a_new_file_is(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "run", OWNER).save("one", {"numbers": torch.ones(2)})
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in (tmp_path / "run").iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_a_name_that_is_no_unicode_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has odd characters; expected others"):
        Checkpoint(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"), OWNER)
    assert not list(tmp_path.iterdir())
