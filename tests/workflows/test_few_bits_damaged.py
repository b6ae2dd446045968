"""Damaged checkpoints of tables in few bits: each is refused, and the error names the tensor or the field."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import equal_state_dicts, save
from few_bits import NUM_TOKENS, packed_model, packed_tables
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

from hf_projclust import ProjClustCheckpointError
from hf_projclust.layout_projclust import PACKED_NAMES
from hf_projclust.packed_projclust import checksum

TABLE = "bert.embeddings.word_embeddings"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(packed_model("bert"), tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def change_tensor(folder: Path, name: str, change: Any, checked: bool = True) -> None:
    """Put a changed tensor in the file; with its own checksum in the configuration, so that it is not told by that."""
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors.pop(f"{TABLE}.{name}"))
    if changed is not None:
        tensors[f"{TABLE}.{name}"] = changed
        if not checked:
            change_config(folder, lambda table: table["checksums"].update({name: checksum(changed)}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    change(fields["projclust"]["embedding"])
    path.write_text(json.dumps(fields))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ProjClustCheckpointError, match=message):
        AutoModelForMaskedLM.from_pretrained(folder)


def with_a_bit_flipped(tensor: torch.Tensor, byte: int, bit: int) -> torch.Tensor:
    numbers = tensor.clone().view(torch.uint8)
    numbers[byte] ^= 1 << bit
    return numbers.view(tensor.dtype)


def set_scale(value: float) -> Any:
    return lambda scales: scales.index_fill(0, torch.tensor([3]), value)


@pytest.mark.parametrize(("byte", "bit"), [(0, 0), (-1, 7), (100, 3)])
@pytest.mark.parametrize("name", PACKED_NAMES)
def test_one_flipped_bit_is_found_and_the_tensor_named(folder: Path, name: str, byte: int, bit: int) -> None:
    change_tensor(folder, name, lambda tensor: with_a_bit_flipped(tensor, byte, bit))
    refused(folder, rf"{TABLE}\.{name} has the CRC-32 \d+; expected \d+, which its config.json names.* damaged: fetch")


@pytest.mark.parametrize("name", [*PACKED_NAMES, "scales"])
def test_a_tensor_that_is_missing_cut_or_longer_is_named(folder: Path, name: str) -> None:
    original = load_file(folder / "model.safetensors")[f"{TABLE}.{name}"]
    for changed in (original[:-1], torch.cat([original, original[:1]]), original.view(1, -1)):
        change_tensor(folder, name, lambda _, changed=changed: changed)
        refused(folder, rf"{TABLE}\.{name} has shape .* in the checkpoint; expected \({len(original)},\) from its")
    change_tensor(folder, name, lambda _: None)
    refused(folder, rf"the checkpoint has no {TABLE}\.{name}\b.*; expected every factor.*fetch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int16, torch.int64])
@pytest.mark.parametrize("name", PACKED_NAMES)
def test_bytes_of_another_dtype_load_as_bytes_if_their_numbers_are_right_and_are_refused_otherwise(
    folder: Path, whole: Path, name: str, dtype: torch.dtype
) -> None:
    """Transformers casts what a file has to the dtype of its place."""
    change_tensor(folder, name, lambda tensor: tensor.to(dtype))
    loaded = AutoModelForMaskedLM.from_pretrained(folder)
    assert equal_state_dicts(loaded, AutoModelForMaskedLM.from_pretrained(whole))
    change_tensor(folder, name, lambda tensor: tensor + (torch.arange(len(tensor)) == 5).to(dtype))
    refused(folder, rf"{TABLE}\.{name} has the CRC-32")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.5])
def test_scales_that_no_table_has_are_refused(folder: Path, value: float) -> None:
    change_tensor(folder, "scales", set_scale(value))
    refused(folder, rf"{TABLE}\.scales has numbers that are negative, infinite or NaN; expected")


@pytest.mark.parametrize(
    "change",
    [
        lambda scales: scales * (1 + 99 * (torch.arange(len(scales)) == 3)),
        lambda scales: scales.flip(0),
        lambda scales: scales * (1 + 1e-3),
        torch.zeros_like,
        lambda scales: scales.int(),
    ],
    ids=["one", "order", "all", "zeros", "dtype"],
)
def test_other_scales_are_refused(folder: Path, change: Any) -> None:
    change_tensor(folder, "scales", change)
    refused(folder, rf"{TABLE}\.scales has the weighted mean .*; expected .*, which its config.json names")


def test_scales_of_another_dtype_are_those_that_were_saved(whole: Path, tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_pretrained(whole, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    half = AutoModelForMaskedLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    half.save_pretrained(tmp_path / "again")
    assert equal_state_dicts(AutoModelForMaskedLM.from_pretrained(tmp_path / "again"), half)


def test_codes_that_were_changed_in_memory_are_not_saved(whole: Path, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(whole)
    model.get_input_embeddings().coefficients.data[7] += 1
    with pytest.raises(ValueError, match="changed in memory, as by averaging.*coefficients has the CRC-32.*Load the"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.dequantize_factors().save_pretrained(tmp_path / "out")


def test_a_format_that_is_not_that_of_the_tables_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields["projclust"]["format_version"] = 1
    path.write_text(json.dumps(fields))
    refused(folder, "has format_version=1 and tables of format 2; expected one")


@pytest.mark.parametrize("cluster", [2, 255])
def test_clusters_that_are_not_there_are_refused_though_the_checksum_is_right(folder: Path, cluster: int) -> None:
    change_tensor(folder, "clusters", lambda c: c.index_fill(0, torch.tensor([7]), cluster), checked=False)
    refused(folder, rf"{TABLE}\.clusters has \[.*\] tokens; expected \[\d+, \d+\] as in its config.json")


def test_clusters_of_other_sizes_are_refused_though_the_checksum_is_right(folder: Path) -> None:
    change_tensor(folder, "clusters", lambda clusters: 1 - clusters, checked=False)
    sizes = json.loads((folder / "config.json").read_text())["projclust"]["embedding"]["cluster_sizes"]
    assert sizes[0] != sizes[1]
    refused(folder, rf"{TABLE}\.clusters has \[{sizes[1]}, {sizes[0]}\] tokens; expected \[{sizes[0]}, {sizes[1]}\]")


def first_band(table: dict[str, Any], **fields: Any) -> None:
    table["cluster_bands"][0][0].update(fields)


CONFIGS = [
    (lambda t: t["cluster_bands"][0].pop(), r"has shape .*; expected .* from its config.json"),
    (lambda t: first_band(t, per_byte=16), r"the bands of a cluster have per_byte=\[16.*\]; expected rising numbers"),
    (
        lambda t: t["cluster_bands"][0].reverse(),
        r"the bands of a cluster have per_byte=\[.*\]; expected rising numbers",
    ),
    (lambda t: first_band(t, per_byte=7), "cluster_bands entry has per_byte=7; expected one of"),
    (lambda t: first_band(t, basis_bits=5), "cluster_bands entry has basis_bits=5; expected one of"),
    (lambda t: first_band(t, basis_bits=16), r"bases has shape .*; expected .* from its config.json"),
    (lambda t: first_band(t, num_coordinates=1), r"has shape .*; expected .* from its config.json"),
    (lambda t: first_band(t, num_coordinates=33), "ranks from 0 to dim=32"),
    (lambda t: first_band(t, num_coordinates=0), "num_coordinates=0.*expected whole numbers >= 1"),
    (lambda t: t["cluster_bands"].pop(), "2 cluster_sizes and 1 cluster_ranks"),
    (lambda t: t["cluster_sizes"].append(0), "3 cluster_sizes and 2 cluster_ranks"),
    (lambda t: t.update(cluster_sizes=[NUM_TOKENS, 0]), r"clusters has \[\d+, \d+\] tokens|has shape"),
    (lambda t: t.update(cluster_sizes=[1, 1]), "vocabulary table of 2,003 x 32; .* factored one of 2 x 32"),
    (
        lambda t: t.update(cluster_sizes=[10**15, 1]),
        "embedding is a table of 1,000,000,000,000,001 x 32 in .* numbers; expected at most",
    ),
    (lambda t: t.update(dim=64), "factored one of 2,003 x 64"),
    (lambda t: t["checksums"].update(clusters=1), "clusters has the CRC-32 .*expected 1, which"),
    (lambda t: t["checksums"].pop("bases"), "expected .*checksums of coefficients, bases, codebooks, clusters"),
    (lambda t: t.pop("cluster_bands"), "is described by .*; expected"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS)
def test_a_configuration_that_does_not_fit_its_file_is_refused(folder: Path, change: Any, message: str) -> None:
    change_config(folder, change)
    refused(folder, message)


def test_a_file_of_floating_factors_is_refused_under_a_configuration_in_few_bits(folder: Path, tmp_path: Path) -> None:
    other = save(packed_model("bert").dequantize_factors(), tmp_path / "floating")
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    refused(folder, rf"the checkpoint has no {TABLE}\.clusters, {TABLE}\.codebooks, {TABLE}\.scales, ")
    shutil.copy(folder / "config.json", tmp_path / "packed.json")
    shutil.copy(other / "config.json", folder / "config.json")
    AutoModelForMaskedLM.from_pretrained(folder)


def test_a_body_is_checked_too_and_mismatches_are_not_ignored(folder: Path) -> None:
    change_tensor(folder, "coefficients", lambda tensor: with_a_bit_flipped(tensor, 9, 1))
    with pytest.raises(ProjClustCheckpointError, match=r"embeddings\.coefficients has the CRC-32"):
        AutoModel.from_pretrained(folder)
    change_tensor(folder, "bases", lambda tensor: tensor[:-1])
    with pytest.raises(ProjClustCheckpointError, match=r"embeddings\.bases has shape"):
        AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_what_is_damaged_is_refused_in_any_precision_and_on_disk(folder: Path, tmp_path: Path) -> None:
    change_tensor(folder, "codebooks", lambda tensor: with_a_bit_flipped(tensor, 9, 1))
    with pytest.raises(ProjClustCheckpointError, match="codebooks has the CRC-32"):
        AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16)
    on_disk = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    with pytest.raises(ProjClustCheckpointError, match="codebooks has the CRC-32"):
        AutoModelForMaskedLM.from_pretrained(folder, **on_disk)


def test_the_checksums_are_those_of_the_tensors(whole: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(whole)
    [table] = packed_tables(model).values()
    assert table.layout.checksums == {name: checksum(getattr(table, name)) for name in PACKED_NAMES}
    assert table.damage() is None
