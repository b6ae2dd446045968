"""Several rates in one run: a folder each, one table in every card, and what is refused before any work."""

import contextlib
import json
import sys
from pathlib import Path

import pytest
from conftest import run_cli

from hf_projclust import compress
from hf_projclust.cards import write_card
from hf_projclust.sizes import measure


def test_several_rates_get_a_folder_each_and_one_table(base: Path, tmp_path: Path) -> None:
    run_cli("compress", base, "--compression", 0.4, 0.625, "--num-clusters", 3, "--output", tmp_path / "made/pc")
    folders = [tmp_path / "made/pc-40", tmp_path / "made/pc-62.5"]
    assert sorted((tmp_path / "made").iterdir()) == folders
    tables = [(folder / "README.md").read_text().partition("## Other sizes of this model\n\n")[2] for folder in folders]
    assert tables[0] == tables[1]
    lines = tables[0].splitlines()
    assert lines[0] == "| | table parameters | model file | times smaller | relative squared error | mean cosine |"
    dense, _ = measure(folders[0])
    assert lines[2] == f"| dense | {97 * 16:,} | {dense.model_disk_bytes / 1e6:.1f} MB | 1.00 | 0 | 1 |"
    for folder, line in zip(folders, lines[3:], strict=True):
        config = json.loads((folder / "config.json").read_text())["projclust"]
        dense, compressed = measure(folder)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells == [
            folder.name,
            f"{compressed.table_parameters:,}",
            f"{compressed.model_disk_bytes / 1e6:.1f} MB",
            f"{dense.model_disk_bytes / compressed.model_disk_bytes:.2f}",
            f"{config['solver']['embedding']['relative_squared_error']:.4f}",
            f"{config['fidelity']['mean_cosine']:.4f}",
        ]
    write_card(folders[0])
    assert tables[0] in (folders[0] / "README.md").read_text()
    one = compress(base, compression=0.625, num_clusters=3)
    one.save_pretrained("one")
    assert Path("one/model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("rates", [["0.4", "1.5"], ["0.4", "0.4"], ["0.4", "0"], ["0.4", "nan"], ["0.4", "0.4000001"]])
def test_rates_that_cannot_be_are_refused_before_any_work(base: Path, tmp_path: Path, rates: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert "expected shares of the table to save that differ" in run_cli(
        "compress", base, "--compression", *rates, "--output", "out", code=1
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_rate_that_the_table_is_too_small_for_is_refused_before_any_other(base: Path, tmp_path: Path) -> None:
    run_cli("compress", base, "--compression", 0.4, 0.999, "--output", "out", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["org"]


def test_an_output_of_several_that_is_taken_is_refused_before_any_work(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out-60").mkdir()
    (tmp_path / "out-60/file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert "holds 1 files" in run_cli("compress", base, "--compression", 0.4, 0.6, "--output", "out", code=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_current_folder_as_output_names_folders_beside_it(base: Path, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path / "org") if sys.version_info >= (3, 11) else contextlib.nullcontext():
        run_cli("compress", tmp_path / base, "--compression", 0.4, 0.6, "--num-clusters", 3, "--output", ".")
    assert {"org-40", "org-60"} < {path.name for path in tmp_path.iterdir()}
