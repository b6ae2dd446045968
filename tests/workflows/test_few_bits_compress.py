"""Making tables in few bits: the command line and its card, bad options, budgets, presets, seeds, interruptions."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import equal_state_dicts, run_cli, save
from few_bits import DIM, NUM_TOKENS, OPTIONS, dense_model, falling_table, packed_model, packed_tables
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from hf_projclust import compress
from hf_projclust.sizes import measure

DENSE_BYTES = NUM_TOKENS * DIM * 4
QUICK = ["--token-counts", "uniform", "--max-rounds", 6]


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(dense_model("gpt2"), tmp_path_factory.mktemp("dense") / "gpt2")


@pytest.fixture
def base(dense_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The dense model; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return dense_folder


def layout_of(model: Any) -> Any:
    return model.get_input_embeddings().layout


# The command line.

COMMANDS = [
    (["--ratio", 6], {"ratio": 6}, "--ratio 6.0"),
    (["--table-bytes", "40KB"], {"table_bytes": "40KB"}, "--table-bytes 40000"),
    (["--table-bytes", 40000], {"table_bytes": 40000}, "--table-bytes 40000"),
    (
        ["--compression", 0.4, "--coefficient-bits", 4],
        {"compression": 0.4, "coefficient_bits": 4},
        "--compression 0.4 --coefficient-bits 4",
    ),
    (
        ["--rank", 8, "--num-clusters", 2, "--coefficient-bits", 8, "--basis-bits", 16],
        {"rank": 8, "num_clusters": 2, "coefficient_bits": 8, "basis_bits": 16},
        "--num-clusters 2 --rank 8 --coefficient-bits 8 --basis-bits 16 --no-adaptive-ranks",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "written"), COMMANDS)
def test_the_command_writes_what_the_function_returns_and_its_card_makes_equal_bytes_again(
    base: Path, arguments: list[Any], options: dict[str, Any], written: str
) -> None:
    run_cli("compress", base, *arguments, *QUICK, "--output", "out")
    loaded = AutoModelForCausalLM.from_pretrained("out")
    assert equal_state_dicts(loaded, compress(base, token_counts="uniform", max_rounds=6, **options))
    card = Path("out/README.md").read_text()
    command = re.search(r"```bash\nhf-projclust (compress MODEL .*)\n```", card)[1]
    assert f" {written} --token-counts uniform --seed 0 --max-rounds 6 --output out" in f" {command}"
    again = shlex.split(command)
    again[1], again[-1] = str(base), "again"
    run_cli(*again)
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_the_card_tells_how_the_table_was_made_and_how_to_train_it(base: Path) -> None:
    run_cli("compress", base, "--ratio", 6, *QUICK, "--output", "out")
    card = Path("out/README.md").read_text()
    assert "ranks and bits were chosen under one budget of bytes, product quantised coordinates, least squares" in card
    assert "dequantize_factors" in card
    layout = layout_of(AutoModelForCausalLM.from_pretrained("out"))
    for number, (size, rank, width) in enumerate(
        zip(layout.cluster_sizes, layout.cluster_ranks, layout.row_bytes, strict=True), 1
    ):
        assert f"| {number} | {size:,} | {rank} | {8 * (width - 1) / rank:.1f} | 0." in card
    run_cli("compress", base, "--rank", 6, "--coefficient-bits", 2, *QUICK, "--output", "two")
    assert "subspaces of one rank, product quantised coordinates of 2 bits, least" in Path("two/README.md").read_text()


def test_a_folder_for_each_rate_in_few_bits(base: Path) -> None:
    run_cli("compress", base, "--compression", 0.4, 0.7, "--coefficient-bits", 8, *QUICK, "--output", "out")
    sizes = [measure(f"out-{rate}")[1].table_disk_bytes for rate in (40, 70)]
    assert 0.2 * DENSE_BYTES > sizes[0] > sizes[1]
    assert "| out-70 | " in Path("out-40/README.md").read_text()


BAD = [
    (["--ratio", 6, "--compression", 0.4], "exactly one of them"),
    (["--ratio", 6, "--table-bytes", "40KB"], "exactly one of them"),
    (["--ratio", 6, "--rank", 4], "exactly one of them"),
    (["--ratio", 0.5], "ratio=0.5; expected a number above 1"),
    (["--ratio", 1], "ratio=1.0; expected a number above 1"),
    (["--ratio", "nan"], "ratio=nan; expected a number above 1"),
    (["--ratio", "inf"], "ratio=inf; expected a number above 1"),
    (["--ratio", -6], "ratio=-6.0; expected a number above 1"),
    (["--table-bytes", "3XB"], "table_bytes='3XB'; expected bytes, or a size such as"),
    (["--table-bytes", 0], "table_bytes='0'; expected bytes"),
    (["--table-bytes", "1GB"], f"1,000,000,000 bytes for a table of 2,003 x 32, which takes {DENSE_BYTES:,}"),
    (["--table-bytes", "5KB"], "5,000 bytes for a table of 2,003 x 32"),
    (["--ratio", 60], f"{DENSE_BYTES // 60:,} bytes for a table of 2,003 x 32"),
    (["--compression", 0.4, "--coefficient-bits", 5], "coefficient_bits=5; expected one of 8, 4, 3, 2"),
    (["--compression", 0.4, "--coefficient-bits", 16], "coefficient_bits=16; expected one of 8, 4, 3, 2"),
    (["--compression", 0.4, "--coefficient-bits", 0], "coefficient_bits=0; expected one of"),
    (["--compression", 0.4, "--coefficient-bits", 8, "--basis-bits", 4], "basis_bits=4; expected one of 16, 8"),
    (["--ratio", 6, "--coefficient-bits", 4], "coefficient_bits=4 with ratio=6; expected one or the other"),
    (["--table-bytes", "40KB", "--coefficient-bits", 4], "coefficient_bits=4 with table_bytes=40000; expected one"),
    (["--compression", 0.4, "--basis-bits", 8], "basis_bits=8 without coefficient_bits; expected both"),
    (["--ratio", 6, "--basis-bits", 8], "basis_bits=8 with ratio=6; expected one or the other"),
    (["--ratio", 6, "--preset", "messi"], "ratio=6 with preset='messi', adaptive_ranks=False and p=2"),
    (["--ratio", 6, "--preset", "svd"], "Use preset='adaptive', or give compression and coefficient_bits"),
    (["--ratio", 6, "--preset", "robust"], "ratio=6 with preset='robust', adaptive_ranks=False and p=1"),
    (["--ratio", 6, "--p", 1.5], "ratio=6 with preset='adaptive', adaptive_ranks=True and p=1.5"),
    (["--ratio", 6, "--no-adaptive-ranks"], "ratio=6 with preset='adaptive', adaptive_ranks=False"),
    (["--ratio", 6, "--num-clusters", 300], "num_clusters=300 in few bits; expected at most 256"),
    (["--rank", 2, "--coefficient-bits", 8, "--num-clusters", 300], "num_clusters=300 in few bits; expected at most"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_options_are_refused_before_anything_is_written(
    base: Path, tmp_path: Path, arguments: list[Any], message: str
) -> None:
    output = run_cli("compress", base, *arguments, *QUICK, "--output", "out", code=1)
    assert message in " ".join(output.split())
    assert output.count("Error:") == 1
    assert "Clustering" not in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [True, "6", [6], None])
def test_a_ratio_that_is_no_number_is_refused(value: Any) -> None:
    expected = "exactly one of them" if value is None else "expected a number above 1"
    with pytest.raises(ValueError, match=expected):
        compress(dense_model("gpt2"), ratio=value)


@pytest.mark.parametrize("name", ["coefficient_bits", "basis_bits"])
@pytest.mark.parametrize("value", [True, "8", 8.5, [8]])
def test_bits_that_are_no_whole_number_are_refused(name: str, value: Any) -> None:
    options = {"coefficient_bits": 8, "basis_bits": 8} | {name: value}
    with pytest.raises(ValueError, match=f"{name}=.*; expected one of"):
        compress(dense_model("gpt2"), compression=0.4, **options)


# Budgets, bits and presets.


@pytest.mark.parametrize("num_clusters", [1, 2, "auto"])
def test_no_table_is_above_its_budget_and_more_bytes_lose_less(num_clusters: Any) -> None:
    """Also where coordinates are kept that are far fainter than what rounding the basis of the strong ones adds."""
    before = 1.0
    for ratio in (24, 12, 6, 4.5, 4, 3):
        model = packed_model("gpt2", ratio=ratio, num_clusters=num_clusters)
        assert sum(layout_of(model).num_bytes(4).values()) <= DENSE_BYTES / ratio
        error = model.config.projclust["solver"]["embedding"]["weighted_relative_squared_error"]
        assert error < 1.25 * before
        assert error < before or error < 2e-4
        before = error


def test_a_ratio_is_of_the_bytes_of_the_model_as_it_is() -> None:
    layout = layout_of(compress(dense_model("gpt2").half(), **OPTIONS, ratio=6))
    assert 0.8 * DENSE_BYTES / 12 < sum(layout.num_bytes(2).values()) <= DENSE_BYTES / 12


@pytest.mark.parametrize(
    ("preset", "bits"),
    [("adaptive", 8), ("adaptive", 2), ("messi", 4), ("svd", 3), ("svd", 8), ("robust", 4), ("robust", 2)],
)
def test_every_preset_is_stored_in_any_bits(preset: str, bits: int, tmp_path: Path) -> None:
    options = {"preset": preset, "compression": 0.5, "token_counts": "uniform", "max_rounds": 4}
    floating = compress(dense_model("gpt2"), **options)
    model = compress(dense_model("gpt2"), **options, coefficient_bits=bits)
    layout, of_floats = layout_of(model), layout_of(floating)
    assert layout.cluster_ranks == of_floats.cluster_ranks
    assert layout.cluster_sizes == of_floats.cluster_sizes
    assert {band.per_byte for bands in layout.cluster_bands for band in bands} == {{8: 1, 4: 2, 3: 3, 2: 4}[bits]}
    lost = [one.config.projclust["solver"]["embedding"]["relative_squared_error"] for one in (floating, model)]
    # A coordinate of a normal table loses these shares of its energy; what the ranks leave out comes on top.
    assert lost[1] < lost[0] + {8: 0.001, 4: 0.02, 3: 0.08, 2: 0.15}[bits]
    assert equal_state_dicts(AutoModelForCausalLM.from_pretrained(save(model, tmp_path)), model)


def test_more_bits_lose_less() -> None:
    found = [packed_model("gpt2", rank=20, coefficient_bits=bits) for bits in (8, 4, 3, 2)]
    errors = [model.config.projclust["solver"]["embedding"]["relative_squared_error"] for model in found]
    assert errors == sorted(errors)
    assert len(set(errors)) == 4


def test_rows_of_a_cluster_of_full_rank_have_no_basis(tmp_path: Path) -> None:
    model = packed_model("gpt2", rank=DIM, num_clusters=2, coefficient_bits=8)
    [table] = packed_tables(model).values()
    assert table.layout.basis_bytes == (0, 0)
    assert table.bases.numel() == 0
    assert model.config.projclust["solver"]["embedding"]["relative_squared_error"] < 1e-3
    assert equal_state_dicts(AutoModelForCausalLM.from_pretrained(save(model, tmp_path)), model)


def test_an_error_that_is_recorded_is_that_of_the_table_that_is_stored() -> None:
    for options in ({"ratio": 6}, {"ratio": 12}, {"preset": "robust", "rank": 6, "coefficient_bits": 3}):
        options = {"num_clusters": 1} | options
        model, dense = packed_model("gpt2", **options), dense_model("gpt2").get_input_embeddings().weight.detach()
        rebuilt = model.get_input_embeddings().dense_weight()
        error = float((rebuilt - dense).square().sum() / dense.square().sum())
        record = model.config.projclust["solver"]["embedding"]
        assert record["relative_squared_error"] == pytest.approx(error, rel=1e-3)
        assert record["energy_kept"] == pytest.approx([1 - error], abs=1e-5)


def test_bits_that_save_nothing_are_told(upstream_log: Any) -> None:
    packed_model("gpt2", rank=31, num_clusters=200, coefficient_bits=8, max_rounds=1)
    assert any("nothing is saved" in record.message for record in upstream_log.records)


# Seeds, limits on memory and interruptions.


@pytest.mark.parametrize("options", [{"ratio": 6}, {"rank": 6, "coefficient_bits": 3}])
def test_equal_seeds_give_equal_bytes_and_other_seeds_others(options: dict[str, Any]) -> None:
    first, again, other = (packed_model("gpt2", **options, seed=seed) for seed in (3, 3, 4))
    assert equal_state_dicts(first, again)
    assert layout_of(first).checksums == layout_of(again).checksums
    assert not torch.equal(*(one.get_input_embeddings().codebooks for one in (first, other)))


def test_blocks_of_rows_change_the_error_by_rounding_only(base: Path) -> None:
    limited = compress(base, **OPTIONS, ratio=6, memory_limit="3MB")
    whole = compress(base, **OPTIONS, ratio=6)
    errors = [one.config.projclust["solver"]["embedding"]["relative_squared_error"] for one in (limited, whole)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
    assert layout_of(limited).num_embeddings == NUM_TOKENS
    for model in (limited, whole):
        assert sum(layout_of(model).num_bytes(4).values()) <= DENSE_BYTES / 6


class _Interrupting:
    """A progress bar that stops the run after so many rounds."""

    def __init__(self, stop_after: int | None) -> None:
        self.rounds, self.stop_after = 0, stop_after

    def __call__(self, **_: Any) -> "_Interrupting":
        return self

    def __enter__(self) -> "_Interrupting":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set_postfix_str(self, *_: object, **__: object) -> None:
        pass

    def update(self) -> None:
        self.rounds += 1
        if self.rounds == self.stop_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_interrupted_search_goes_on_and_gives_equal_bytes(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: sums that are taken up again differ by rounding, which in float32 moves some rows."""
    model = dense_model("gpt2").double()
    options: dict[str, Any] = OPTIONS | {"ratio": 12, "num_clusters": "auto", "max_rounds": 12}
    place = {"checkpoint": tmp_path / "checkpoint"}

    def run(progress: _Interrupting, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(logging, "tqdm", progress)
            return compress(model, **options, **more)

    whole, rest = _Interrupting(None), _Interrupting(None)
    expected = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(_Interrupting(max(1, int(share * whole.rounds))), **place)
    assert list((tmp_path / "checkpoint").glob("clusters-*.safetensors"))
    assert equal_state_dicts(run(rest, **place), expected)
    assert rest.rounds < whole.rounds
    assert list((tmp_path / "checkpoint").glob("clusters-*-final.safetensors"))
    with pytest.raises(ValueError, match="belongs to another run: ratio"):
        compress(model, **(options | {"ratio": 5}), **place)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e30])
@pytest.mark.parametrize("options", [{"ratio": 6}, {"compression": 0.4, "coefficient_bits": 4}], ids=["ratio", "bits"])
def test_tables_of_any_size_of_numbers_are_stored_alike(options: dict[str, Any], scale: float) -> None:
    dense = dense_model("bert")
    errors = []
    for factor in (1.0, scale):
        with torch.no_grad():
            dense.get_input_embeddings().weight.copy_(falling_table() * factor)
        record = compress(dense, **OPTIONS, **options).config.projclust["solver"]["embedding"]
        errors.append(record["relative_squared_error"])
    assert errors[1] == pytest.approx(errors[0], rel=0.1)
