"""A compressed model as a folder: what fails beside it costs no model."""

from pathlib import Path

import pytest
from conftest import run_cli
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM


def test_fidelity_that_cannot_be_measured_costs_nothing_but_its_line(
    base: Path, monkeypatch: pytest.MonkeyPatch, upstream_log: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("pixels wanted")

    monkeypatch.setattr("hf_projclust.saving.measure_fidelity", fail)
    run_cli("compress", base, "--rank", 4, "--output", "out")
    assert "was not measured: pixels wanted (RuntimeError)" in upstream_log.text
    card = ModelCard.load("out/README.md")
    assert card.data.eval_results is None
    assert "was not measured." in card.text


def test_a_card_that_cannot_be_written_costs_no_model(
    base: Path, monkeypatch: pytest.MonkeyPatch, upstream_log: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("hf_projclust.cards.plot_record", fail)
    run_cli("compress", base, "--rank", 4, "--output", "out")
    assert "The model card was not written: no ink (RuntimeError)" in upstream_log.text
    assert AutoModelForMaskedLM.from_pretrained("out").config.factor_layouts["embedding"].cluster_ranks == (4,) * 5
