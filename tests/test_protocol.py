"""The protocol of benchmark glue: one command makes all cells, goes on after a stop, and sums up what is there."""

import dataclasses
import inspect
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from conftest import TINY_MODELS, VOCAB_SIZE, run_cli, run_python
from tiny_tokenizers import build_word_level
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2Model

from hf_projclust.cli.glue import GlueCommand, glue
from hf_projclust.evaluation.glue import Examples
from hf_projclust.evaluation.protocol.cells import _choice, load_examples
from hf_projclust.evaluation.protocol.methods import METHODS, check_fit, compress_options
from hf_projclust.evaluation.protocol.plan import DENSE, PAPER_TASKS, Cell, Protocol, default_tasks
from hf_projclust.evaluation.protocol.run import run_protocol
from hf_projclust.evaluation.protocol.summary import Spread, missing_cells, summarise
from hf_projclust.options import PRESETS

TASKS = {"SST-2": ("sentence\tlabel", 16), "STS-B": ("sentence1\tsentence2\tscore", 12)}
OPTIONS: dict[str, Any] = {
    "methods": ("svd", "adaptive-task", "adaptive-int4"),
    "rates": (0.3,),
    "epochs": 1.0,
    "extra_epochs": 2.0,
    "learning_rate": 1e-2,
    "batch_size": 4,
    "token_counts": ("tokenizer",),
}
KILLED = """
import os, sys
from hf_projclust.cli import app
from hf_projclust.evaluation.protocol.folder import ProtocolFolder
write_cell, left = ProtocolFolder.write_cell, [int(sys.argv.pop(1))]
def write_and_die(self, *args):
    write_cell(self, *args)
    left[0] -= 1
    if not left[0]:
        os.execv(sys.executable, [sys.executable, "-c", ""])  # at once, with no clean-up, and exit code 0
ProtocolFolder.write_cell = write_and_die
app()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tasks, and in it the folder "base" with a tiny BERT."""
    folder = tmp_path_factory.mktemp("glue")
    for name, (header, num_train) in TASKS.items():
        (folder / name).mkdir()
        for split, count in (("train", num_train), ("dev", 10)):
            lines = [
                f"the {kind} w{number} film\t"
                + (f"{number % 2}" if name == "SST-2" else f"a w{number}\t{number % 5}.0")
                for number in range(count)
                for kind in [("bad", "good")[number % 2]]
            ]
            (folder / name / f"{split}.tsv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder / "base")
    build_word_level(VOCAB_SIZE).save_pretrained(folder / "base")
    return folder


def arguments(data: Path, output: Path) -> list[str]:
    named = {"data-dir": (data,), "output": (output,)}
    named |= {
        name.replace("_", "-"): value if isinstance(value, tuple) else (value,) for name, value in OPTIONS.items()
    }
    spread = [str(part) for name, values in named.items() for part in (f"--{name}", *values)]
    return ["benchmark", "glue", str(data / "base"), *spread]


def protocol(data: Path, **options: Any) -> Protocol:
    return Protocol(**{"base": data / "base", "data_dir": data, "tasks": ("sst2", "stsb"), **OPTIONS, **options})


def cells_in(folder: Path) -> dict[str, Any]:
    """What each cell has, but for what no two runs share: how long it took."""
    found = {path.name: json.loads(path.read_text()) for path in (folder / "cells").iterdir()}
    for cell in found.values():
        del cell["seconds"]
    return found


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run of the command, and what it printed."""
    folder = tmp_path_factory.mktemp("made") / "out"
    return folder, run_cli(*arguments(data, folder))


@pytest.fixture
def copied(made: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "out"))


def test_the_command_makes_every_cell_and_the_tables(made: tuple[Path, str], data: Path) -> None:
    folder, printed = made
    cells = cells_in(folder)
    assert set(cells) == {f"{cell.name}.json" for cell in protocol(data).cells()}
    assert len(cells) == 2 * 2 * (1 + 3)
    for text in (printed, (folder / "table.md").read_text()):
        assert "Without fine-tuning after compression" in text
        assert "After the extra epochs of fine-tuning" in text
        assert "missing" not in text
    rows = json.loads((folder / "table.json").read_text())["rows"]
    svd = next(row for row in rows if (row["stage"], row["method"]) == ("before", "svd"))
    scores = [cells[f"{task}-0-svd-0.3-before.json"]["metrics"]["score"] for task in ("sst2", "stsb")]
    dense = [cells[f"{task}-0-dense-before.json"]["metrics"]["score"] for task in ("sst2", "stsb")]
    assert svd["score"]["mean"] == pytest.approx(sum(scores) / 2)
    assert svd["drop"]["mean"] == pytest.approx(sum(dense) / 2 - sum(scores) / 2)
    assert f"{sum(scores) / 2:.2f}" in printed
    assert (folder / "drops.png").read_bytes().startswith(b"\x89PNG")
    assert not any((folder / "models").iterdir())  # which nothing needs any more


def test_a_cell_has_metrics_sizes_errors_and_what_it_is_compared_to(made: tuple[Path, str]) -> None:
    cells = cells_in(made[0])
    for stage in ("before", "after"):
        dense, svd, few_bits = (
            cells[f"stsb-0-{name}-{stage}.json"] for name in ("dense", "svd-0.3", "adaptive-int4-0.3")
        )
        assert set(dense["metrics"]) == {"pearson", "spearman", "score"}
        assert svd["dense_score"] == dense["dense_score"] == dense["metrics"]["score"]
        assert svd["dense_sha256"] == dense["dense_sha256"]
        assert (dense["table_parameters"], dense["table_bytes"]) == (VOCAB_SIZE * 16, VOCAB_SIZE * 16 * 4)
        assert svd["table_parameters"] < 0.72 * dense["table_parameters"]
        assert svd["table_bytes"] == 4 * (svd["table_parameters"] + VOCAB_SIZE)  # and one int32 a token
        assert few_bits["table_bytes"] < svd["table_bytes"] / 3
        assert 0 < svd["relative_squared_error"] < few_bits["relative_squared_error"] * 1.5 < 1
        assert (svd["num_train"], svd["num_validation"]) == (12, 10)
    for name in ("dense", "svd-0.3", "adaptive-int4-0.3"):  # fine-tuning does something
        before, after = (cells[f"stsb-0-{name}-{stage}.json"]["metrics"]["pearson"] for stage in ("before", "after"))
        assert before != after
    seconds = json.loads((made[0] / "cells/stsb-0-svd-0.3-after.json").read_text())["seconds"]
    assert seconds.keys() == {"fine_tune_dense", "compress", "fine_tune", "score"}


def test_options_of_a_method_are_those_that_the_model_records(made: tuple[Path, str]) -> None:
    cells = cells_in(made[0])
    for method, counts in (("svd", "uniform"), ("adaptive-task", "sst2-train.txt"), ("adaptive-int4", ["tokenizer"])):
        record = cells[f"sst2-0-{method}-0.3-before.json"]["solver"]
        options = {**METHODS[method].options, "compression": 0.3, "seed": 0, "token_counts": counts}
        assert {name: record[name] for name in options} == options


def test_a_repeated_command_makes_nothing_again(copied: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copied / "cells").iterdir()}
    run_cli(*arguments(data, copied))
    assert {path: path.stat().st_mtime_ns for path in (copied / "cells").iterdir()} == before
    assert not any((copied / "models").iterdir())


@pytest.mark.parametrize("after", [2, 10])  # among cells before and after the extra epochs
def test_a_killed_run_goes_on_to_the_same_bits(after: int, made: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    run_python(KILLED, str(after), *arguments(data, tmp_path / "out"))
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").iterdir()}
    assert len(first) == after
    assert any((tmp_path / "out/models").iterdir())
    run_protocol(protocol(data), tmp_path / "out")
    assert cells_in(tmp_path / "out") == cells_in(made[0])
    assert {path: path.stat().st_mtime_ns for path in first} == first
    seconds = {  # the dense classifier was not fine-tuned again
        json.loads(path.read_text())["seconds"]["fine_tune_dense"]
        for path in (tmp_path / "out/cells").glob(f"{'sst2' if after == 10 else 'stsb'}-0-*")
    }
    assert len(seconds) == 1


def test_a_cell_that_is_deleted_is_made_again_to_the_same_bits(copied: Path, data: Path) -> None:
    before = cells_in(copied)
    for name in ("stsb-0-svd-0.3-after", "stsb-0-adaptive-int4-0.3-after", "sst2-0-adaptive-task-0.3-before"):
        (copied / f"cells/{name}.json").unlink()
    run_protocol(protocol(data), copied)
    assert cells_in(copied) == before


def test_methods_rates_and_seeds_may_be_added_and_extra_epochs_come_later(data: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"tasks": ("stsb",), "methods": ("svd",)}
    run_protocol(protocol(data, **small, extra_epochs=0.0), tmp_path, keep_models=True)
    trained = (tmp_path / "models/stsb-0/model.safetensors").stat().st_mtime_ns
    assert set(cells_in(tmp_path)) == {"stsb-0-dense-before.json", "stsb-0-svd-0.3-before.json"}
    rows, _ = run_protocol(protocol(data, **small, rates=(0.5, 0.3), seeds=(0, 1)), tmp_path, keep_models=True)
    assert (tmp_path / "models/stsb-0/model.safetensors").stat().st_mtime_ns == trained
    assert not list(tmp_path.glob("models/*/factors-*"))
    assert len(cells_in(tmp_path)) == 2 * 2 * 3
    assert all(row.score is not None and row.score.num_seeds == 2 for row in rows)
    run_protocol(protocol(data, **small, extra_epochs=0.0), tmp_path)
    with pytest.raises(ValueError, match=r"extra_epochs 2\.0 there and 3\.0 now"):
        run_protocol(protocol(data, **small, extra_epochs=3.0), tmp_path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"epochs": 2.0}, r"epochs 1\.0 there and 2\.0 now"),
        ({"learning_rate": 1e-3}, r"learning_rate 0\.01 there and 0\.001 now"),
        ({"batch_size": 8, "bf16": True}, "batch_size 4 there and 8 now, bf16 False there and True now"),
        ({"max_length": 16}, "max_length 128 there and 16 now"),
        ({"max_train": 4}, "max_train None there and 4 now"),
        ({"token_counts": ("uniform",)}, r"token_counts \['tokenizer'\] there and \['uniform'\] now"),
    ],
)
def test_other_options_are_refused_with_what_differs(
    options: dict[str, Any], problem: str, copied: Path, data: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    with pytest.raises(ValueError, match=f"were made otherwise: {problem}; expected equal options"):
        run_protocol(protocol(data, **options), copied)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_another_base_is_refused(copied: Path, data: Path, tmp_path: Path, tokenizer: Any) -> None:
    TINY_MODELS["bert"].build().bert.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="base_sha256"):
        run_protocol(protocol(data, base=tmp_path / "base"), copied)


def changed(data: Path, folder: Path, *, split: str) -> Path:
    """A copy of the folder of tasks in which one label of STS-B is another."""
    copy = Path(shutil.copytree(data, folder))
    path = copy / f"STS-B/{split}.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("\t4.0", "\t3.5", 1), encoding="utf-8")
    return copy


@pytest.mark.parametrize("split", ["train", "dev"])
def test_other_examples_are_refused(split: str, copied: Path, data: Path, tmp_path: Path) -> None:
    other = changed(data, tmp_path / "other", split=split)
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    with pytest.raises(ValueError, match=r"task 'stsb' has other examples than 8 of its cells .*stsb-0-.*delete cells"):
        run_protocol(protocol(data, data_dir=other), copied)
    with pytest.raises(ValueError, match="other examples than 8"):
        run_protocol(protocol(data, data_dir=other, seeds=(1,)), copied)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    for path in (copied / "cells").glob("stsb-*"):  # as an earlier version wrote them
        cell = json.loads(path.read_text())
        assert len(cell.pop("examples_sha256")) == 64
        path.write_text(json.dumps(cell))
    run_protocol(protocol(data, data_dir=other), copied)


def test_a_kept_classifier_of_other_examples_is_fine_tuned_again(data: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"tasks": ("stsb",), "methods": ("svd",), "extra_epochs": 0.0}
    run_protocol(protocol(data, **small), tmp_path / "out", keep_models=True)
    first = cells_in(tmp_path / "out")["stsb-0-dense-before.json"]["dense_sha256"]
    shutil.rmtree(tmp_path / "out/cells")
    other = changed(data, tmp_path / "other", split="train")
    run_protocol(protocol(data, **small, data_dir=other), tmp_path / "out")
    assert cells_in(tmp_path / "out")["stsb-0-dense-before.json"]["dense_sha256"] != first


def test_a_corpus_whose_text_changed_is_refused(data: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the good film\n")
    small: dict[str, Any] = {"tasks": ("stsb",), "extra_epochs": 0.0, "token_counts": (str(corpus),)}
    run_protocol(protocol(data, **small, methods=("svd",)), tmp_path / "out")
    corpus.write_text("the bad film\n")  # which svd does not read
    run_protocol(protocol(data, **small, methods=("svd", "adaptive")), tmp_path / "out")
    run_protocol(protocol(data, **small, methods=("svd",)), tmp_path / "out")
    run_protocol(protocol(data, **small, methods=("adaptive",)), tmp_path / "out")
    corpus.write_text("the good film\n")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    with pytest.raises(ValueError, match=r"made with other texts of token_counts corpus\.txt .*Put the earlier texts"):
        run_protocol(protocol(data, **small, methods=("adaptive",)), tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_other_versions_are_warned_of_and_noted(copied: Path, data: Path, upstream_log: Any) -> None:
    run = json.loads((copied / "run.json").read_text())
    run["made_with"][0]["versions"]["torch"] = "1.0"
    (copied / "run.json").write_text(json.dumps(run))
    run_protocol(protocol(data), copied)
    assert "were made with other versions or on another machine" in upstream_log.text
    assert len(json.loads((copied / "run.json").read_text())["made_with"]) == 2


def test_a_damaged_cell_is_refused_by_its_name(copied: Path, data: Path) -> None:
    path = copied / "cells/stsb-0-svd-0.3-after.json"
    path.write_text(path.read_text()[:40])
    printed = run_cli(*arguments(data, copied), code=1)
    assert "stsb-0-svd-0.3-after.json' is damaged" in " ".join(printed.split())
    path.write_text("[]")
    with pytest.raises(ValueError, match="is damaged"):
        run_protocol(protocol(data), copied)


def test_cells_of_another_dense_classifier_are_not_mixed(copied: Path, data: Path) -> None:
    path = copied / "cells/stsb-0-dense-before.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dense_sha256": "0" * 64}))
    (copied / "cells/stsb-0-svd-0.3-after.json").unlink()
    with pytest.raises(ValueError, match=r"has other weights than .* 1 of its cells .*Delete cells/stsb-0-\*"):
        run_protocol(protocol(data), copied)


def test_a_folder_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match=r"holds something, and no run\.json"):
        run_protocol(protocol(data), tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        run_protocol(protocol(data), tmp_path / "thesis.txt")
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tasks": ("rte", "sst")}, "task 'sst'; expected one of GLUE"),
        ({"tasks": ()}, r"tasks \(none\); expected at least one"),
        ({"methods": ("svd", "pca")}, "method 'pca'; expected one of svd, messi"),
        ({"methods": ("svd", "svd")}, "methods svd svd; expected at least one, and none twice"),
        ({"rates": (0.4, 1.0)}, r"rate 1\.0; expected a share of the table"),
        ({"rates": (math.nan,)}, "rate nan"),
        ({"seeds": (-1,)}, "seed=-1; expected a whole number, 0 to"),
        ({"seeds": (2**32,)}, "expected a whole number, 0 to 4,294,967,295"),
        ({"epochs": 0.0}, r"epochs=0\.0; expected a number above 0"),
        ({"extra_epochs": -1.0}, r"extra_epochs=-1\.0; expected a number of at least 0"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"batch_size": 0}, "batch_size=0; expected a whole number, 1 or more"),
        ({"max_train": 0}, "max_train=0"),
        ({"device": "abacus"}, "device='abacus' cannot be used here"),
        ({"token_counts": ("words:",)}, "has nothing after 'words:'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], problem: str, data: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        protocol(data, **options)


def test_what_cannot_be_made_is_refused_before_anything_is_written(data: Path, tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(FileNotFoundError, match="expected the layout of the official download"):
        run_protocol(protocol(data, tasks=("rte",)), tmp_path / "out")
    with pytest.raises(ValueError, match="compression=0.999"):
        run_protocol(protocol(data, rates=(0.999,)), tmp_path / "out")
    TINY_MODELS["bert"].compressed().save_pretrained(tmp_path / "compressed")
    shutil.copy(data / "base/tokenizer.json", tmp_path / "compressed")
    shutil.copy(data / "base/tokenizer_config.json", tmp_path / "compressed")
    with pytest.raises(ValueError, match="is compressed already"):
        run_protocol(protocol(data, base=tmp_path / "compressed"), tmp_path / "out")
    config = BertConfig.from_pretrained(data / "base", num_labels=2)
    save_base(BertForSequenceClassification(config), tmp_path / "classifier", tokenizer)
    for tasks in (("sst2",), ("stsb",)):  # of as many outputs, and of others
        with pytest.raises(ValueError, match="expected a pretrained model, which is given a fresh head"):
            run_protocol(protocol(data, base=tmp_path / "classifier", tasks=tasks), tmp_path / "out")
    config = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=16, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    save_base(GPT2Model(config), tmp_path / "gpt2", tokenizer)
    with pytest.raises(ValueError, match=r"Set model\.config\.pad_token_id"):
        run_protocol(protocol(data, base=tmp_path / "gpt2"), tmp_path / "out")
    tokenizer.pad_token = None
    save_base(GPT2Model(config), tmp_path / "gpt2", tokenizer)
    with pytest.raises(ValueError, match=r"Set tokenizer\.pad_token"):
        run_protocol(protocol(data, base=tmp_path / "gpt2"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def save_base(model: Any, folder: Path, tokenizer: Any) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_base_in_bfloat16_is_fine_tuned_in_float32(data: Path, tmp_path: Path, tokenizer: Any) -> None:
    save_base(BertModel.from_pretrained(data / "base", dtype=torch.bfloat16), tmp_path / "base", tokenizer)
    small: dict[str, Any] = {"tasks": ("stsb",), "methods": ("svd",), "extra_epochs": 0.0}
    run_protocol(protocol(data, **small, base=tmp_path / "base"), tmp_path / "out")
    assert cells_in(tmp_path / "out")["stsb-0-dense-before.json"]["table_bytes"] == VOCAB_SIZE * 16 * 4


def test_cells_without_fine_tuning_come_first_and_small_tasks_before_large_ones(data: Path) -> None:
    plan = protocol(data, seeds=(0, 1))
    assert list(load_examples(plan)) == ["stsb", "sst2"]
    cells = plan.cells(["stsb", "sst2"])
    assert len(set(cells)) == len(cells) == 2 * 2 * 2 * 4
    assert [cell.stage for cell in cells] == ["before"] * 16 + ["after"] * 16
    assert [cell.name for cell in cells[:5]] == [
        "stsb-0-dense-before",
        "stsb-0-svd-0.3-before",
        "stsb-0-adaptive-task-0.3-before",
        "stsb-0-adaptive-int4-0.3-before",
        "sst2-0-dense-before",
    ]
    assert cells[8].seed == 1


def test_tasks_are_by_default_those_of_the_folder_or_the_papers(data: Path, tmp_path: Path) -> None:
    assert default_tasks(data) == ("sst2", "stsb")
    assert default_tasks(None) == PAPER_TASKS
    with pytest.raises(FileNotFoundError, match="no task in"):
        default_tasks(tmp_path)


def test_a_choice_of_examples_is_random_in_order_and_the_same_each_time() -> None:
    examples = Examples([f"a{number}" for number in range(100)], [f"b{number}" for number in range(100)], [*range(100)])
    chosen = _choice(examples, 10)
    assert chosen == _choice(examples, 10)
    assert chosen.labels == sorted(set(chosen.labels)) != [*range(10)]
    assert chosen.first == [f"a{label}" for label in chosen.labels]
    assert chosen.second == [f"b{label}" for label in chosen.labels]
    assert _choice(examples, 100) == _choice(examples, None) == examples


def test_every_method_is_a_preset_with_its_counts() -> None:
    given = {"token_counts": ["words:en", "prompt:query: "]}
    for name, method in METHODS.items():
        options = compress_options(name, 0.4, 3, token_counts=given["token_counts"], task_texts=Path("rte-train.txt"))
        assert options["preset"] in PRESETS
        assert (options["compression"], options["seed"]) == (0.4, 3)
        counts = {"none": None, "given": given["token_counts"], "task": "rte-train.txt"}[method.counts]
        assert options.get("token_counts") == counts
    with pytest.raises(ValueError, match="method 'adaptive-task' without texts"):
        compress_options("adaptive-task", 0.4, 0, token_counts=["uniform"])


@pytest.mark.parametrize("method", METHODS)
def test_a_rate_that_leaves_nothing_is_refused_for_each_method(method: str) -> None:
    table = TINY_MODELS["bert"].build().get_input_embeddings().weight
    check_fit(method, 0.4, table)
    with pytest.raises(ValueError, match="compression=0.99"):
        check_fit(method, 0.99, table)


def record(score: float, error: float | None = None, size: int = 100) -> dict[str, Any]:
    return {"metrics": {"score": score}, "table_bytes": size, "relative_squared_error": error}


def test_a_summary_by_hand_leaves_out_means_over_other_tasks() -> None:
    plan = Protocol(
        base="base", tasks=("rte", "cola"), methods=("svd",), rates=(0.4, 0.6), seeds=(0, 1), token_counts=("uniform",)
    ).cells()
    scores = {  # rate: scores of rte and cola of seed 0, then of seed 1
        None: [60, 50, 64, 52],
        0.4: [58, 40, 60, 46],
        0.6: [50, 30, 40, None],
    }
    cells = {
        Cell(task, seed, DENSE if rate is None else "svd", rate, "before"): record(score, rate, 100 * seed + 100)
        for rate, values in scores.items()
        for (seed, task), score in zip([(0, "rte"), (0, "cola"), (1, "rte"), (1, "cola")], values, strict=True)
        if score is not None
    }
    cells[Cell("rte", 0, "svd", 0.4, "after")] = record(61)
    for (method, rate), values in {(DENSE, None): (63, 55), ("svd", 0.6): (55, 53)}.items():
        for task, score in zip(("rte", "cola"), values, strict=True):
            cells[Cell(task, 1, method, rate, "after")] = record(score)
    rows = {(row.stage, row.rate): row for row in summarise(cells, plan)}
    assert list(rows) == [(stage, rate) for stage in ("before", "after") for rate in (None, 0.4, 0.6)]
    dense, low, high = (rows["before", rate] for rate in (None, 0.4, 0.6))
    half = math.sqrt(2) / 2  # the deviation of two numbers that are 1 apart
    assert dense.tasks == {
        "cola": Spread(51, pytest.approx(2 * half), 2),
        "rte": Spread(62, pytest.approx(4 * half), 2),
    }
    assert dense.score == Spread(56.5, pytest.approx(3 * half), 2)
    assert dense.drop == Spread(0, 0, 2)
    assert low.score == Spread(51, pytest.approx(4 * half), 2)  # 49 and 53
    assert low.drop == Spread(5.5, pytest.approx(half), 2)  # 55 - 49 and 58 - 53
    assert (low.error, low.table_bytes) == (Spread(0.4, 0, 2), Spread(150, pytest.approx(100 * half), 2))
    assert high.tasks["rte"] == Spread(45, pytest.approx(10 * half), 2)
    assert high.tasks["cola"] == Spread(30, None, 1)
    assert high.score == Spread(40, None, 1)  # of seed 0 alone
    assert high.drop == Spread(15, None, 1)
    after = rows["after", 0.4]
    assert after.tasks == {"cola": None, "rte": Spread(61, None, 1)}
    assert after.score is after.drop is after.error is None
    assert rows["after", 0.6].drop == Spread(5, None, 1)  # against the dense model after the extra epochs
    missing = missing_cells(cells, plan)
    assert len(missing) == len(plan) - 16
    assert missing[0] == Cell("cola", 1, "svd", 0.6, "before")


def test_options_of_the_command_are_those_of_the_protocol() -> None:
    options = {field.name: field.default for field in dataclasses.fields(Protocol) if field.name != "base"}
    command = {name: parameter.default for name, parameter in inspect.signature(glue).parameters.items()}
    assert command.keys() - {"base", "output", "keep_models"} == options.keys()
    assert {name: command[name] for name in options if command[name] is not None} == {
        name: value for name, value in options.items() if value is not None and not isinstance(value, tuple)
    }
    help_text = " ".join(run_cli("benchmark", "glue", "--help").replace("│", " ").split())
    for name in METHODS:
        assert name in help_text


@pytest.mark.parametrize(
    "arguments",
    [
        ["BASE", "--tasks", "rte", "cola", "--rates", "0.4", "0.6", "--seeds", "0", "1", "--output", "out"],
        ["BASE", "--output=out", "--tasks=rte", "cola", "--seeds", "0", "--seeds", "1", "--rates=0.4", "0.6"],
        ["--tasks", "rte", "--tasks", "cola", "--rates", "0.4", "0.6", "--seeds", "0", "1", "--output", "out", "BASE"],
    ],
)
def test_options_take_several_names_or_numbers(arguments: list[str]) -> None:
    app = typer.Typer()
    app.command(cls=GlueCommand)(glue)
    context = typer.main.get_command(app).make_context("glue", arguments)
    found = {name: context.params[name] for name in ("base", "tasks", "rates", "seeds")}
    assert {name: list(value) if name != "base" else value for name, value in found.items()} == {
        "base": "BASE",
        "tasks": ["rte", "cola"],
        "rates": [0.4, 0.6],
        "seeds": [0, 1],
    }
