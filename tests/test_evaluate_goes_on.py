"""An evaluation that was stopped goes on from its checkpoint, with the figures of one that was not."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_cli
from test_evaluate import STS

from hf_projclust.cards import write_card
from hf_projclust.evaluation import comparison
from hf_projclust.evaluation.comparison import Evaluation, evaluate
from hf_projclust.evaluation.steps import steps_in
from hf_projclust.locks import locked

IN_ORDER = [*["spearman"] * 2, "compare_states", "compare_predictions", *["masked_perplexity"] * 2]


class Measures:
    """What is measured, in order; None of it once there are ``limit``."""

    def __init__(self) -> None:
        """Begin with nothing, and no limit."""
        self.names: list[str] = []
        self.limit = 100

    def watched(self, name: str) -> Any:
        """The measure of a name, which notes that it was asked."""
        measure = getattr(comparison, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if len(self.names) == self.limit:
                raise KeyboardInterrupt
            self.names.append(name)
            return measure(*args, **kwargs)

        return watched


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> Measures:
    found = Measures()
    for name in set(IN_ORDER):
        monkeypatch.setattr(comparison, name, found.watched(name))
    return found


@pytest.fixture
def inputs(base: Path, folder: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "dev.tsv").write_text(STS)
    return {"folder": folder, "against": base, "sts": tmp_path / "dev.tsv", "checkpoint": tmp_path / "kept"}


def undated(found: Evaluation) -> Any:
    return dataclasses.replace(found, date="").to_dict()


@pytest.mark.parametrize("limit", [0, 1, 3, 5])
def test_one_that_was_stopped_measures_the_rest(limit: int, inputs: dict[str, Any], measures: Measures) -> None:
    whole = undated(evaluate(**(inputs | {"checkpoint": None})))
    assert measures.names == IN_ORDER
    measures.names, measures.limit = [], limit
    with pytest.raises(KeyboardInterrupt):
        evaluate(**inputs)
    measures.limit = len(IN_ORDER)
    assert undated(evaluate(**inputs)) == whole
    assert measures.names == IN_ORDER
    assert undated(evaluate(**inputs)) == whole  # and measures nothing
    assert measures.names == IN_ORDER


def change_text(inputs: dict[str, Any]) -> None:
    inputs["sts"].write_text(STS.replace("\t4", "\t5"))


def change_model(inputs: dict[str, Any]) -> None:
    run_cli("compress", inputs["against"], "--compression", 0.5, "--output", inputs["folder"], "--force")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda inputs: inputs.update(seed=1), "seed"),
        (lambda inputs: inputs.update(batch_size=3), "batch_size"),
        (change_text, "sts"),
        (lambda inputs: inputs.update(text=inputs["sts"]), "text"),
        (change_model, "folder"),
    ],
)
def test_the_checkpoint_of_another_evaluation_is_refused(change: Any, differs: str, inputs: dict[str, Any]) -> None:
    evaluate(**inputs)
    change(inputs)
    with pytest.raises(ValueError, match=f"belongs to another run: {differs} differ; expected .* another folder"):
        evaluate(**inputs)


@pytest.mark.parametrize("within", ["folder", "against"])
def test_a_checkpoint_within_what_is_measured_is_refused(within: str, inputs: dict[str, Any]) -> None:
    inputs["checkpoint"] = inputs[within] / "kept"
    with pytest.raises(ValueError, match="kept' is .* or in it, which is measured; expected a folder elsewhere"):
        evaluate(**inputs)
    assert not inputs["checkpoint"].exists()


def test_a_folder_of_other_things_is_refused_before_anything_is_measured(
    inputs: dict[str, Any], measures: Measures
) -> None:
    inputs["checkpoint"].mkdir()
    (inputs["checkpoint"] / "precious").touch()
    with pytest.raises(ValueError, match="holds other things; expected a folder that is new or empty"):
        evaluate(**inputs)
    assert measures.names == []


def test_a_second_run_is_refused_meanwhile(inputs: dict[str, Any]) -> None:
    with locked(inputs["checkpoint"]), pytest.raises(BlockingIOError, match=r"is being written by process \d+"):
        evaluate(**inputs)


def test_the_command_goes_on_too(inputs: dict[str, Any], measures: Measures) -> None:
    arguments = ["evaluate", inputs["folder"], "--against", inputs["against"], "--sts", inputs["sts"]]
    arguments += ["--checkpoint", inputs["checkpoint"]]
    measures.limit = 2
    run_cli(*arguments, code=130)
    measures.limit = len(IN_ORDER)
    output = run_cli(*arguments, "--output", "out.json")
    assert measures.names == IN_ORDER
    assert "perplexity" in output
    assert Path("out.json").exists()


def test_a_card_or_another_time_of_the_files_is_no_other_evaluation(inputs: dict[str, Any], measures: Measures) -> None:
    first = evaluate(**inputs)
    write_card(inputs["folder"])
    for path in (inputs["sts"], *inputs["folder"].iterdir()):
        os.utime(path, (1, 1))
    assert evaluate(**inputs) == first
    assert measures.names == IN_ORDER


@pytest.mark.parametrize("change", ["version", "id", "file in a folder"])
def test_what_the_figures_follow_from_is_all_told_apart(change: str, tmp_path: Path) -> None:
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    (tmp_path / "glue" / "RTE" / "dev.tsv").write_text("one")

    def found(number: int, version: str = "1", model: str = "org/model") -> int:
        data = {"data_dir": tmp_path / "glue"}
        with steps_in(tmp_path / "kept", {"version": version}, models={"folder": model}, data=data) as step:
            return step("task", dict, figure=number)

    assert found(1) == found(2) == {"figure": 1}
    if change == "file in a folder":
        (tmp_path / "glue" / "RTE" / "dev.tsv").write_text("two")
    given = {"version": {"version": "2"}, "id": {"model": "org/other"}, "file in a folder": {}}[change]
    with pytest.raises(ValueError, match="belongs to another run"):
        found(3, **given)


@pytest.mark.parametrize("state", [{}, {"found": None}, {"found": [1]}, {"found": torch.ones(1)}])
def test_a_damaged_figure_is_refused(state: dict[str, Any], tmp_path: Path) -> None:
    with steps_in(tmp_path, {}, models={}, data={}) as step:
        assert step("figure", float, "1.5") == 1.5
        step.checkpoint.save("figure", state)
    with (
        pytest.raises(ValueError, match="'figure' is damaged: .*; expected a figure. Delete the folder"),
        steps_in(tmp_path, {}, models={}, data={}) as step,
    ):
        step("figure", float, "1.5")


def test_each_score_of_a_task_is_a_step(tmp_path: Path) -> None:
    seen: list[str] = []

    def score(model: str, **options: int) -> dict[str, float]:
        if len(seen) == 1 and model == "two":
            raise KeyboardInterrupt
        seen.append(model)
        return {"accuracy": 50.0 + len(model)}

    with pytest.raises(KeyboardInterrupt), steps_in(tmp_path, {}, models={}, data={}) as step:
        step.of_both("task", ["one", "two"], score, batch_size=2)
    seen.append("stopped")
    with steps_in(tmp_path, {}, models={}, data={}) as step:
        assert step.of_both("task", ["one", "two"], score, batch_size=2) == [{"accuracy": 53.0}] * 2
    assert seen == ["one", "stopped", "two"]
