"""An evaluation that was stopped goes on from its checkpoint, with the figures of one that was not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import run_cli
from test_evaluate import STS

from hf_projclust.evaluation import comparison
from hf_projclust.evaluation.comparison import Evaluation, evaluate
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
