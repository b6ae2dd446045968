"""Figures that a compressed folder carries: held to be of its weights, and kept by cards as long as they are."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, run_cli, save, with_validation
from huggingface_hub import EvalResult, ModelCard
from loopback_hub import LoopbackHub
from transformers import AutoModelForMaskedLM

from hf_projclust.cards import write_card
from hf_projclust.evaluation.figures import KINDS, Figure
from hf_projclust.evaluation.record import note_evaluation, noted_evaluation, weights_digest
from hf_projclust.sizes import read_config

FIGURES = (
    Figure("mean_cosine", "50 English sentences that come with hf_projclust", "bundled-sentences", None, 1.0, 0.98765),
    Figure("masked_perplexity", "a|b.txt, 3 lines", "a-b.txt", None, 1234.567, 1300.0),
    Figure("task_accuracy", "RTE of GLUE, validation, 277 examples", "nyu-mll/glue", "rte", 66.06, 64.98),
)
LINES = """
By `hf-projclust evaluate` on 2026-01-31 (UTC), of these weights:

| | on | dense | compressed | difference |
|---|---|---:|---:|---:|
| mean cosine of embeddings to the dense ones | 50 English sentences that come with hf_projclust | 1.0000 | 0.9877 | \
-0.0123 |
| perplexity of masked tokens | a\\|b.txt, 3 lines | 1,234.57 | 1,300.00 | +65.43 |
| accuracy, % | RTE of GLUE, validation, 277 examples | 66.06 | 64.98 | -1.08 |

![Tokens"""


@pytest.fixture
def evaluated(folder: Path) -> Path:
    """The compressed model of the command line, with figures in its card."""
    note_evaluation(folder, FIGURES, "2026-01-31")
    write_card(folder)
    return folder


def results(card: Path) -> list[tuple[Any, ...]]:
    found = ModelCard.load(card).data.eval_results or []
    return [
        (each.task_type, each.dataset_type, each.dataset_config, each.metric_type, each.metric_value) for each in found
    ]


OURS = [
    ("feature-extraction", "bundled-sentences", None, "cosine_similarity", 0.9877),
    ("fill-mask", "a-b.txt", None, "perplexity", 1300.0),
    ("text-classification", "nyu-mll/glue", "rte", "accuracy", 64.98),
]


def test_what_was_evaluated_since_is_not_said_to_be_unmeasured(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    del fields["projclust"]["fidelity"]  # as of a model that was compressed in Python
    (folder / "config.json").write_text(json.dumps(fields))
    write_card(folder)
    assert "was not measured" in (folder / "README.md").read_text()
    note_evaluation(folder, FIGURES, "2026-01-31")
    write_card(folder)
    assert "was not measured" not in (folder / "README.md").read_text()


def test_a_card_has_the_figures_as_lines_and_as_results(evaluated: Path) -> None:
    text = (evaluated / "README.md").read_text()
    assert LINES in text
    assert "No task was scored" not in text
    assert results(evaluated / "README.md")[1:] == OURS  # the first is that of the compression


def test_a_card_without_scores_says_that_no_task_was_scored(folder: Path) -> None:
    note_evaluation(folder, FIGURES[:1], "2026-01-31")
    write_card(folder)
    assert "No task was scored" in (folder / "README.md").read_text()


def test_figures_outlive_a_card_that_is_written_again_or_anew(evaluated: Path) -> None:
    before = (evaluated / "README.md").read_text()
    write_card(evaluated)
    assert (evaluated / "README.md").read_text() == before
    (evaluated / "README.md").unlink()
    write_card(evaluated)
    assert LINES in (evaluated / "README.md").read_text()
    assert results(evaluated / "README.md")[1:] == OURS


@with_validation
@pytest.mark.usefixtures("signed_in")
def test_figures_outlive_a_push_of_the_folder_and_of_the_model(evaluated: Path, hub: LoopbackHub) -> None:
    run_cli("push", evaluated, "org/pc40")
    AutoModelForMaskedLM.from_pretrained(evaluated).push_to_hub("org/again")
    for name in ("org/pc40", "org/again"):
        assert LINES in hub.files(name)["README.md"].decode()
        Path("card.md").write_bytes(hub.files(name)["README.md"])
        assert results(Path("card.md"))[-3:] == OURS


def test_scores_of_others_stay_and_those_of_an_evaluation_before_go(evaluated: Path) -> None:
    card = ModelCard.load(evaluated / "README.md")
    other = EvalResult("text-classification", "nyu-mll/glue", "our GLUE", "accuracy", 12.5, dataset_config="rte")
    card.data.eval_results = [other, *card.data.eval_results]
    card.save(evaluated / "README.md")
    newer = dataclasses.replace(FIGURES[2], compressed=70.0)
    note_evaluation(evaluated, (newer,), "2026-02-01")
    write_card(evaluated)
    assert sorted(results(evaluated / "README.md"))[1:] == [(*OURS[2][:4], 12.5), (*OURS[2][:4], 70.0)]
    text = (evaluated / "README.md").read_text()
    assert "| text-classification | our GLUE | accuracy | 12.5 |" in text
    assert "64.98" not in text


def test_figures_of_other_weights_are_left_out_with_a_warning(
    evaluated: Path, upstream_log: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(evaluated)
    with torch.no_grad():
        model.get_input_embeddings().bases[0, 0] += 1e-3
    model.save_pretrained(evaluated)
    write_card(evaluated)
    assert "is of other weights, and left out of the card" in upstream_log.text
    assert "By `hf-projclust evaluate`" not in (evaluated / "README.md").read_text()
    assert len(results(evaluated / "README.md")) == 1


def test_figures_of_a_fine_tuned_model_are_in_its_card(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("- projclust\n", "- projclust\n- generated_from_trainer\n"))
    note_evaluation(folder, FIGURES, "2026-01-31")
    write_card(folder)
    assert LINES in (folder / "README.md").read_text()
    assert results(folder / "README.md") == OURS  # without the fidelity of the compression


def test_the_digest_is_of_the_numbers_and_of_no_files(tmp_path: Path) -> None:
    model = TINY_MODELS["bert"].compressed()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert weights_digest(tmp_path / "one") == weights_digest(tmp_path / "shards")
    save(model.half(), tmp_path / "half")
    assert weights_digest(tmp_path / "half") != weights_digest(tmp_path / "one")


def test_a_folder_without_figures_has_none_and_figures_of_unknown_names_are_passed_over(folder: Path) -> None:
    assert noted_evaluation(folder, read_config(folder)) is None
    note_evaluation(folder, FIGURES, "2026-01-31")
    assert noted_evaluation(folder, read_config(folder)) == (FIGURES, "2026-01-31")
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"task_accuracy"', '"speed"'))
    assert noted_evaluation(folder, read_config(folder)) == (FIGURES[:2], "2026-01-31")


def test_the_note_changes_nothing_else(folder: Path) -> None:
    before = json.loads((folder / "config.json").read_text())
    note_evaluation(folder, FIGURES, "2026-01-31")
    after = json.loads((folder / "config.json").read_text())
    del after["projclust"]["evaluation"]
    assert after == before
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("name", KINDS)
def test_the_difference_that_is_shown_is_that_of_the_shown_numbers(name: str) -> None:
    digits = KINDS[name].digits
    cells = Figure(name, "x", "x", None, 50 + 0.49 * 10**-digits, 50 + 0.51 * 10**-digits).cells()
    assert cells["difference"] == f"+{10**-digits:.{digits}f}"
    assert float(cells["compressed"]) - float(cells["dense"]) == pytest.approx(float(cells["difference"]))


def test_figures_with_other_fields_are_passed_over(folder: Path) -> None:
    note_evaluation(folder, FIGURES, "2026-01-31")
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["projclust"]["evaluation"]["figures"][0]["deviation"] = 0.1
    del content["projclust"]["evaluation"]["figures"][1]["config"]
    path.write_text(json.dumps(content))
    assert noted_evaluation(folder, read_config(folder)) == (FIGURES[2:], "2026-01-31")


def test_what_cannot_be_noted_leaves_the_folder_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="not JSON compliant"):
        note_evaluation(folder, (dataclasses.replace(FIGURES[0], compressed=float("nan")),), "2026-01-31")

    def no_room(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr("os.replace", no_room)
    monkeypatch.setattr(Path, "replace", no_room)
    with pytest.raises(OSError, match="no room"):
        note_evaluation(folder, FIGURES, "2026-01-31")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
