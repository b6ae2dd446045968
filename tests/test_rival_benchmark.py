"""The comparison with rivals: figures of real tiny models, the front, the plot, and the command from end to end."""

import copy
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, run_cli
from few_bits import DIM, NUM_TOKENS, dense_model
from safetensors.torch import load_file
from tiny_tokenizers import build_word_level

from hf_projclust import cli, compress
from hf_projclust.evaluation.fidelity import embed_sentences, mean_cosine
from hf_projclust.evaluation.rivals import benchmark as rival_benchmark
from hf_projclust.evaluation.rivals.benchmark import compare_rivals
from hf_projclust.evaluation.rivals.contenders import PRODUCT, RIVALS, ROUNDING
from hf_projclust.evaluation.rivals.plots import plot_rivals
from hf_projclust.evaluation.rivals.points import DENSE, OURS, OURS_FLOAT, RivalAbsence, RivalPoint, front
from hf_projclust.evaluation.rivals.rounding import round_to_nearest
from hf_projclust.evaluation.whole_files import whole_file
from hf_projclust.modeling_projclust import ProjClustModelMixin
from hf_projclust.sizes import measure

TEXTS = ["good film", "w1 w2 w3 bad", "w40 w500 w1990 w7"]
Found = tuple[list[RivalPoint], list[RivalAbsence]]


@pytest.fixture(scope="module")
def words() -> Any:
    """A tokenizer whose ids are those of the models of ``few_bits``."""
    return build_word_level(NUM_TOKENS)


@pytest.fixture(scope="module")
def counts() -> torch.Tensor:
    return 1 / torch.arange(1, NUM_TOKENS + 1, dtype=torch.float64)


@pytest.fixture(scope="module")
def measured(words: Any, counts: torch.Tensor) -> Found:
    model = dense_model("bert")
    row = model.get_input_embeddings().weight[5].detach().clone()

    @torch.no_grad()
    def closeness_of_a_row(other: Any) -> float:
        return -float((other.get_input_embeddings()(torch.tensor([5])) - row).abs().max())

    return compare_rivals(
        model,
        token_counts=counts,
        ratios=[2, 6],
        texts=TEXTS,
        tokenizer=words,
        score=closeness_of_a_row,
    )


def test_every_method_is_measured_in_bytes_that_are_no_more_than_asked(measured: Found) -> None:
    points, absences = measured
    assert absences == []
    assert list(dict.fromkeys(point.method for point in points)) == [DENSE, OURS, OURS_FLOAT, *RIVALS]
    dense_bytes = 4 * NUM_TOKENS * DIM
    assert points[0] == RivalPoint(DENSE, "float32", dense_bytes, 1.0, pytest.approx(1, abs=1e-6), 0.0, 0.0, 0.0)
    for point in points[1:]:
        assert point.times_smaller == dense_bytes / point.table_bytes
        assert point.relative_squared_error > 0
        if point.method != ROUNDING:
            assert point.table_bytes <= dense_bytes / (6 if point.setting == "ratio 6" else 2)
    few = [point for point in points if point.method in (OURS, OURS_FLOAT)]
    assert [point.setting for point in few] == ["ratio 2", "ratio 6"] * 2
    for point in few:  # most of what was asked is used; beyond a byte a coordinate there is nothing to use it for
        assert point.times_smaller < (4 if point.setting == "ratio 2" else 6.6)


def test_figures_of_a_rival_are_those_of_the_model_with_its_table(
    measured: Found, words: Any, counts: torch.Tensor
) -> None:
    model = dense_model("bert")
    table = model.get_input_embeddings().weight.detach().clone()
    words = copy.deepcopy(words)
    reference = embed_sentences(model, words, TEXTS)
    (point,) = [p for p in measured[0] if p.setting == "int3, groups of 32"]
    built = round_to_nearest(table, bits=3, group=32)
    model.get_input_embeddings().weight.data.copy_(built.rows)
    assert point.table_bytes == built.size_bytes
    assert point.mean_cosine == pytest.approx(mean_cosine(embed_sentences(model, words, TEXTS), reference), abs=1e-6)
    errors, energies = (built.rows - table).square().sum(dim=1), table.square().sum(dim=1)
    assert point.relative_squared_error == pytest.approx(float(errors.sum() / energies.sum()), rel=1e-4)
    weighted = float((errors * counts).sum() / (energies * counts).sum())
    assert point.weighted_relative_squared_error == pytest.approx(weighted, rel=1e-4)
    assert point.score == pytest.approx(-float((built.rows[5] - table[5]).abs().max()), rel=1e-5)


def test_bytes_and_figures_of_ours_are_those_of_the_saved_file(
    measured: Found, words: Any, counts: torch.Tensor, tmp_path: Path
) -> None:
    model = compress(dense_model("bert"), ratio=6, token_counts=counts, tokenizer=words)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    place = "bert.embeddings.word_embeddings."
    # One byte stands under the name of the dense weight, for native classes to stumble over.
    of_table = [stored[name] for name in stored if name.startswith(place) and not name.endswith(".weight")]
    (point,) = [p for p in measured[0] if (p.method, p.setting) == (OURS, "ratio 6")]
    assert point.table_bytes == sum(tensor.nbytes for tensor in of_table) == measure(tmp_path)[1].table_disk_bytes
    reference = embed_sentences(dense_model("bert"), words, TEXTS)
    assert point.mean_cosine == pytest.approx(mean_cosine(embed_sentences(model, words, TEXTS), reference), abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_any_kind_of_model_is_compared_and_left_as_it_was(name: str, words: Any) -> None:
    model = dense_model(name).train()
    before = copy.deepcopy(model.state_dict())
    heads: list[bool] = []

    def is_tied(other: Any) -> float:
        if not isinstance(other, ProjClustModelMixin):
            heads.append(other.get_output_embeddings().weight is other.get_input_embeddings().weight)
        return 0.0

    points, absences = compare_rivals(
        model, token_counts="uniform", ratios=[6], texts=TEXTS, tokenizer=words, score=is_tied
    )
    assert {point.method for point in points} == {DENSE, OURS, OURS_FLOAT, *RIVALS}
    assert absences == []
    assert model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert set(heads) == {name != "llama"}


def test_what_a_table_is_too_small_for_is_listed_with_a_reason(tokenizer: Any) -> None:
    points, absences = compare_rivals(
        TINY_MODELS["bert"].build(), token_counts="uniform", ratios=[30], tokenizer=tokenizer
    )
    assert {point.method for point in points} == {DENSE, ROUNDING}
    assert {absence.method for absence in absences} == {OURS, OURS_FLOAT, *RIVALS} - {ROUNDING}
    assert all(absence.reason for absence in absences)


def test_an_error_of_the_score_is_raised(words: Any) -> None:
    def fail(model: Any) -> float:
        if isinstance(model, ProjClustModelMixin):
            raise ValueError("no labels")
        return 0.0

    with pytest.raises(ValueError, match="no labels"):
        compare_rivals(
            dense_model("bert"), token_counts="uniform", ratios=[6], texts=TEXTS, tokenizer=words, score=fail
        )


def test_equal_seeds_give_equal_figures(measured: Found, words: Any, counts: torch.Tensor) -> None:
    options = {"token_counts": counts, "ratios": [6], "texts": TEXTS, "tokenizer": words}
    again, other = (compare_rivals(dense_model("bert"), seed=seed, **options)[0] for seed in (0, 1))
    before = {(point.method, point.setting): replace(point, score=None) for point in measured[0]}
    for point in again:
        assert before[point.method, point.setting] == point
    assert [point for point in again if point.method == PRODUCT] != [p for p in other if p.method == PRODUCT]


def point(method: str, size_bytes: int, cosine: float, score: float | None = None) -> RivalPoint:
    return RivalPoint(method, "", size_bytes, 100 / size_bytes, cosine, 0.0, 0.0, score)


def test_the_front_says_which_rival_is_better_in_no_more_bytes() -> None:
    ours = [point(OURS, 10, 0.9, 3.0), point(OURS, 20, 0.95, 5.0), point(OURS_FLOAT, 5, 0.5, 1.0)]
    small, large = point(ROUNDING, 10, 0.92, 2.0), point(PRODUCT, 11, 0.95, 4.0)
    points = [point(DENSE, 100, 1.0, 9.0), *ours, small, large]
    by_cosine = front(points)
    assert [standing.point for standing in by_cosine] == ours
    assert [standing.best_rival for standing in by_cosine] == [small, large, None]
    assert [standing.is_beaten for standing in by_cosine] == [True, False, False]  # equal is not beaten
    assert [standing.is_beaten for standing in front(points, "score")] == [False, False, False]
    with pytest.raises(ValueError, match="figure='score'; expected 'mean_cosine', or 'score' of points that have one"):
        front([point(OURS, 10, 0.9)], "score")
    with pytest.raises(ValueError, match="figure='setting'"):
        front(points, "setting")  # type: ignore[arg-type]


def test_the_plot_has_a_panel_for_each_figure(measured: Found, tmp_path: Path) -> None:
    plot_rivals(measured[0], tmp_path / "two.svg", title="tiny", score_name="some score")
    plot_rivals([replace(point, score=None) for point in measured[0]], tmp_path / "one.png")
    drawn = (tmp_path / "two.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in (OURS, *RIVALS, "bytes of the table", "some score", "tiny"))
    assert drawn.count("<!-- times smaller -->") == 2
    assert (tmp_path / "one.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.svg"]
    with pytest.raises(ValueError, match="0 points, the dense one not among them"):
        plot_rivals([], tmp_path / "none.png")
    with pytest.raises(ValueError, match="ends in 'txt'; expected one of"):
        plot_rivals(measured[0], tmp_path / "two.txt")


def test_a_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fail() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "before"
    with whole_file(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": []}, r"ratios=\[\]; expected one or several numbers above 1 that differ"),
        ({"ratios": [4, 4]}, r"ratios=\[4, 4\]"),
        ({"ratios": [1]}, r"ratios=\[1\]"),
        ({"ratios": ["4"]}, "ratios="),
        ({"texts": []}, r"texts=\[\]; expected a list of one string or several"),
        ({"texts": "one"}, "texts='one'"),
        ({"seed": -1}, "seed=-1; expected a whole number"),
        ({"count_exponent": 3}, "count_exponent=3; expected a number from 0 to 2"),
        ({"token_counts": [0.0, 0.0]}, "token counts have 0 for every token"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rival_benchmark, "own_model", lambda _: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=message):
        compare_rivals("org/base", **options)


@pytest.fixture(scope="module")
def dense_folder(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dense"
    dense_model("bert").save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_the_command_writes_plot_and_figures(dense_folder: Path, tmp_path: Path) -> None:
    texts, plot, figures = tmp_path / "texts.txt", tmp_path / "r.png", tmp_path / "r.json"
    texts.write_text("good film\n\nw1 bad w3\n")
    (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\ngood film\tw1\t1\nw1 w2\tw2 w1\t5\nbad\tgood\t3\n")
    counted = ("--token-counts", str(texts), "--text", texts, "--sts", tmp_path / "sts.tsv")
    command = ("benchmark", "rivals", dense_folder, "--ratio", 3, 6, *counted, "--output", plot, "--json", figures)
    shown = run_cli(*command)
    record = json.loads(figures.read_text())
    assert record["options"] == {
        "model": "dense",
        "texts": "texts.txt, 2 lines",
        "score": "Spearman correlation of mean-pooled embeddings, %, sts.tsv, 3 pairs",
        "token_counts": ["texts.txt"],
        "ratios": [3, 6],
        "seed": 0,
        "count_exponent": 0.5,
        "norm_exponent": 1.0,
    }
    assert {"torch", "transformers", "faiss"} <= record["versions"].keys()
    assert "CPUs" in record["machine"]
    assert [point["setting"] for point in record["points"] if point["method"] == OURS] == ["ratio 3", "ratio 6"]
    assert [(name, len(found)) for name, found in record["front"].items()] == [("mean_cosine", 4), ("score", 4)]
    for name, found in record["front"].items():
        for standing in found:
            best = standing["best_rival"]
            told = f"better than {standing['point']['method']}, {standing['point']['setting']}: "
            by = f"By {'cosine' if name == 'mean_cosine' else name} the best rival of no more bytes is {told}"
            assert (by in shown) == standing["is_beaten"]
            assert not standing["is_beaten"] or f"{by}{best['method']}, {best['setting']} ({best[name]:.5g})" in shown
    for point in record["points"]:
        figures_shown = rf"{point['table_bytes']:,}.*{point['mean_cosine']:.5f}.*{point['score']:.2f}"
        assert re.search(rf"{re.escape(point['setting'])}.*{figures_shown}", shown)
    assert plot.read_bytes().startswith(b"\x89PNG")

    before = figures.read_bytes(), plot.read_bytes()
    assert "is there; expected a file to make" in run_cli(*command, code=1)
    assert (figures.read_bytes(), plot.read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.png", "sts.tsv", "texts.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "r.docx"], "ends in 'docx'"),
        (["--output", "nowhere/r.png"], "is in no folder"),
        (["--output", "r.svg", "--json", "r.svg"], "expected two files"),
        (["--text", "none.txt"], "no texts 'none.txt'; expected a text file"),
        (["--ratio", "0.5"], "expected one or several numbers above 1"),
        (["--token-counts", "none.txt"], "is neither a file nor a folder"),
    ],
)
def test_the_command_refuses_before_it_writes(
    arguments: list[str], message: str, dense_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in run_cli("benchmark", "rivals", dense_folder, *arguments, code=1)
    assert not list(tmp_path.iterdir())


def test_options_of_the_command_are_those_of_the_function() -> None:
    function, command = (inspect.signature(found).parameters for found in (compare_rivals, cli.rivals))
    shared = function.keys() & command.keys()
    assert shared == {"token_counts", "seed", "count_exponent", "norm_exponent"}
    for name in shared - {"token_counts"}:
        assert command[name].default == function[name].default
    help_text = " ".join(run_cli("benchmark", "rivals", "--help").replace("│", " ").split())
    assert f"By default {' '.join(map(str, function['ratios'].default))}." in help_text
    assert f"By default {function['token_counts'].default}." in help_text
    assert "Example: hf-projclust benchmark rivals" in help_text
