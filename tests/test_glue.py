"""GLUE's tasks: files in the layout of the official download, labels in the task's order, metrics by hand."""

import math
from pathlib import Path
from typing import Any

import datasets
import pytest

from hf_projclust.evaluation.glue import GLUE_TASKS, HUB_ID, Examples, check_task, glue_metrics, load_glue

FILES = {  # a task's file, and the examples that it holds
    "cola": ('gj04\t1\t\tA "good film.\ngj04\t0\t*\tA film good.\n', ['A "good film.', "A film good."], None, [1, 0]),
    "mnli": (
        "index\tpairID\tsentence1\tsentence2\tgold_label\n0\tx\tone\ttwo\tneutral\n",
        ["one"],
        ["two"],
        [1],
    ),
    "mrpc": ('\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\t" one\ttwo\n', ['" one'], ["two"], [0]),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\twho?\tshe.\tnot_entailment\n", ["who?"], ["she."], [1]),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\twho?\tshe?\t1\n", ["who?"], ["she?"], [1]),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\tentailment\n", ["one"], ["two"], [0]),
    "sst2": ("sentence\tlabel\na good film \t1\n", ["a good film "], None, [1]),
    "stsb": ("index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\tone\ttwo\t3.800\n", ["one"], ["two"], [3.8]),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\t1\n", ["one"], ["two"], [1]),
}


def write(folder: Path, task: str, text: str, split: str = "dev") -> Path:
    name = f"{split}_matched.tsv" if task == "mnli" and split == "dev" else f"{split}.tsv"
    path = folder / GLUE_TASKS[task].folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("task", GLUE_TASKS)
def test_a_file_of_the_official_download_is_read_as_it_is(task: str, split: str, tmp_path: Path) -> None:
    text, first, second, labels = FILES[task]
    write(tmp_path, task, text, split)
    examples = load_glue(task, "train" if split == "train" else "validation", tmp_path)
    assert examples == Examples(first, second, labels)
    assert examples.texts() == [*first, *(second or [])]


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_the_hubs_data_set_is_read_by_its_own_columns(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    columns = GLUE_TASKS[task].hub_columns

    def load_dataset(name: str, config: str, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_dict({**{column: [f"a {column}"] for column in columns}, "label": [1]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = load_glue(task, "validation")
    assert asked == [(HUB_ID, task, "validation_matched" if task == "mnli" else "validation")]
    assert examples.texts() == [f"a {column}" for column in columns]
    assert examples.labels == [1]


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("Couldn't find cache for nyu-mll/glue")])
def test_a_hub_out_of_reach_is_said_with_the_way_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str, split: str) -> datasets.Dataset:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConnectionError, match=f"could not be had from the Hub .*Give data_dir, .*{error}"):
        load_glue("rte", "validation")


HEADER, ROW = "index\tsentence1\tsentence2\tlabel\n", "0\tone\ttwo\tentailment\n"


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, "rte", f"{HEADER}\n{ROW}\n \n{ROW}\r\n\n")
    assert load_glue("rte", "validation", tmp_path) == Examples(["one"] * 2, ["two"] * 2, [0, 0])


def test_a_few_cut_rows_are_left_out_with_one_warning(tmp_path: Path, upstream_log: Any) -> None:
    path = write(tmp_path, "rte", HEADER + 99 * ROW + "0\tone\n" + 98 * ROW + "0\tone\ttwo\n" + ROW)
    assert len(load_glue("rte", "validation", tmp_path)) == 198
    assert [record.getMessage() for record in upstream_log.records] == [
        f"2 of 200 examples of {path} have too few columns and are left out."
    ]
    write(tmp_path, "rte", HEADER + 197 * ROW + 3 * "0\tone\n")
    with pytest.raises(ValueError, match=r"example 198 of .* has 2 columns, and 3 of 200 .*expected at least 4"):
        load_glue("rte", "validation", tmp_path)


def test_a_text_of_any_length_and_with_any_breaks_of_lines_is_read(tmp_path: Path) -> None:
    text = "a\u2028\x85" * 100_000
    write(tmp_path, "sst2", f"sentence\tlabel\n{text}\t1\n")
    assert load_glue("sst2", "validation", tmp_path).first == [text]


def test_a_file_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "rte", "")
    path.write_bytes(HEADER.encode() + b"0\tcaf\xe9\ttwo\tentailment\n")
    with pytest.raises(ValueError, match=r"RTE/dev\.tsv' is not in UTF-8 .*Fetch it again"):
        load_glue("rte", "validation", tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("index\tsentence1\tlabel\n0\tone\t1\n", "has no column 'sentence2' but 'index', 'sentence1', 'label'"),
        ("", "has no column 'sentence1', 'sentence2', 'label'"),
        ("index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\n", "example 1 of .* has 3 columns, .*; expected at least 4"),
        ("index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\tmaybe\n", "has the label 'maybe'; expected one of entail"),
        ("index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\t2\n", "has the label '2'"),
        ("index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\t-1\n", "has the label '-1'"),
    ],
)
def test_a_file_of_another_layout_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    write(tmp_path, "rte", text)
    with pytest.raises(ValueError, match=problem):
        load_glue("rte", "validation", tmp_path)


@pytest.mark.parametrize("label", ["good", "nan", "inf"])
def test_a_score_that_is_no_number_is_refused(label: str, tmp_path: Path) -> None:
    write(tmp_path, "stsb", f"sentence1\tsentence2\tscore\none\ttwo\t{label}\n")
    with pytest.raises(ValueError, match=f"has the label '{label}'; expected a number"):
        load_glue("stsb", "validation", tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the layout of the official download"):
        load_glue("rte", "validation", tmp_path)
    with pytest.raises(ValueError, match="task 'RTE'; expected one of GLUE: cola, mnli"):
        check_task("RTE")
    with pytest.raises(ValueError, match="split 'test'"):
        load_glue("rte", "test", tmp_path)  # type: ignore[arg-type]


def test_metrics_are_those_of_the_task_by_hand() -> None:
    # Three true positives, one false one, one false negative, no true negative.
    found, true = [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]
    assert glue_metrics("mrpc", found, true) == pytest.approx({"accuracy": 60, "f1": 75, "score": 67.5})
    assert glue_metrics("rte", found, true) == pytest.approx({"accuracy": 60, "score": 60})
    # (3 * 0 - 1 * 1) / sqrt(4 * 4 * 1 * 1)
    assert glue_metrics("cola", found, true) == pytest.approx({"matthews": -25, "score": -25})
    # Order agrees; 1, 2, 4 against 1, 2, 3: covariance 3/3, deviations sqrt(14/9) and sqrt(2/3).
    pearson = 100 / math.sqrt(14 / 9 * 2 / 3)
    assert glue_metrics("stsb", [1.0, 2, 4], [1.0, 2, 3]) == pytest.approx(
        {"pearson": pearson, "spearman": 100, "score": (pearson + 100) / 2}
    )


def test_a_classifier_that_says_one_thing_only_has_correlation_zero_without_a_warning() -> None:
    assert glue_metrics("stsb", [2.0, 2.0, 2.0], [1.0, 2, 3]) == {"pearson": 0, "spearman": 0, "score": 0}
    assert glue_metrics("cola", [1, 1, 1], [1, 0, 1]) == {"matthews": 0, "score": 0}


@pytest.mark.parametrize("task", ["stsb", "rte"])
def test_predictions_that_are_no_numbers_are_refused(task: str) -> None:
    with pytest.raises(ValueError, match="1 of 3 predictions are NaN or infinite"):
        glue_metrics(task, [1.0, math.nan, 0.0], [1, 0, 1])


def test_predictions_and_labels_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions for 3 labels"):
        glue_metrics("rte", [0, 1], [0, 1, 1])
