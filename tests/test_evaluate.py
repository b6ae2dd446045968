"""``hf-projclust evaluate``: which figures a model gets, what the command prints and writes, and what is refused."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, run_cli, save
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertLMHeadModel,
    BertModel,
)

from hf_projclust import cli, compress
from hf_projclust.evaluation.agreement import compare_predictions, compare_states
from hf_projclust.evaluation.batches import tokens_of
from hf_projclust.evaluation.comparison import evaluate
from hf_projclust.evaluation.fidelity import bundled_sentences
from hf_projclust.evaluation.perplexity import masked_perplexity
from hf_projclust.sizes import measure

STS = "index\tsentence1\tsentence2\tscore\n0\tgood film\tgood w1\t4\n1\tbad film\tw2 w3\t1\n2\tw4\tw9 film\t2\n"
STATES = ["mean_cosine", "hidden_error"]


def pair(name: str, folder: Path, tokenizer: Any) -> tuple[Path, Path]:
    """A tiny model and the same compressed, each in a folder."""
    model = TINY_MODELS[name].build()
    save(model, folder / "dense")
    tokenizer.save_pretrained(folder / "dense")
    return save(
        compress(model, num_clusters=3, compression=0.6, token_counts="uniform"), folder / "out"
    ), folder / "dense"


def values(found: Any) -> dict[str, tuple[float, float]]:
    return {figure.name: (figure.dense, figure.compressed) for figure in found.figures}


@pytest.mark.parametrize(
    ("name", "of_predictions"),
    [
        ("bert", ["masked_kl", "masked_top1_agreement", "masked_perplexity"]),
        ("gpt2", ["kl", "top1_agreement", "perplexity"]),
        ("llama", ["kl", "top1_agreement", "perplexity"]),
        ("t5", ["kl", "top1_agreement"]),
        ("roberta", []),
        ("distilbert", []),
    ],
)
def test_figures_follow_from_the_model_and_one_against_itself_loses_nothing(
    name: str, of_predictions: list[str], tmp_path: Path, tokenizer: Any
) -> None:
    folder, dense = pair(name, tmp_path, tokenizer)
    found = values(evaluate(folder, dense))
    assert list(found) == STATES + of_predictions
    assert 0 < found["mean_cosine"][1] < 0.9999
    assert found["hidden_error"][1] > 1e-3
    itself = evaluate(dense, dense)
    assert list(values(itself)) == list(found)
    for figure in itself.figures:
        assert figure.difference == pytest.approx(0, abs=1e-6), figure.name


def test_figures_are_those_of_the_functions(folder: Path, base: Path, tokenizer: Any) -> None:
    found = evaluate(folder, base, seed=4, batch_size=3)
    models = [AutoModelForMaskedLM.from_pretrained(path).eval() for path in (base, folder)]
    texts = tokens_of(AutoTokenizer.from_pretrained(base), bundled_sentences(), models[0])
    options = {"tokenizer": tokenizer, "batch_size": 5, "seed": 4}
    expected = compare_states(*models, texts, batch_size=5)
    expected |= {f"masked_{name}": value for name, value in compare_predictions(*models, texts, **options).items()}
    for name, value in expected.items():
        assert values(found)[name][1] == pytest.approx(value, rel=1e-5)
    perplexities = [masked_perplexity(model, texts, **options) for model in models]
    assert values(found)["masked_perplexity"] == pytest.approx(perplexities, rel=1e-5)
    assert found.num_tokens == sum(len(text) for text in texts)
    fidelity = json.loads((folder / "config.json").read_text())["projclust"]["fidelity"]
    assert values(found)["mean_cosine"][1] == pytest.approx(fidelity["mean_cosine"], abs=1e-6)


def test_the_command_prints_and_writes_what_the_function_returns(
    folder: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "texts.txt").write_text("good film w1 w2\n\nbad film\nw5 w6 w7\n")
    (tmp_path / "dev.tsv").write_text(STS)
    arguments = [
        "evaluate",
        folder,
        "--against",
        base,
        "--text",
        tmp_path / "texts.txt",
        "--sts",
        tmp_path / "dev.tsv",
    ]
    output = run_cli(*arguments, "--seed", 2, "--batch-size", 2, "--output", "out.json", "--plot", "out.svg", "--card")
    found = evaluate(folder, base, text=tmp_path / "texts.txt", sts=tmp_path / "dev.tsv", seed=2, batch_size=2)
    written = json.loads(Path("out.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))
    assert [(figure["name"], figure["on"]) for figure in written["figures"]] == [
        *(
            (name, "texts.txt, 3 lines")
            for name in (*STATES, "masked_kl", "masked_top1_agreement", "masked_perplexity")
        ),
        ("spearman", "dev.tsv, 3 pairs"),
    ]
    assert written["sizes"] == {
        name: dataclasses.asdict(sizes) for name, sizes in zip(("dense", "compressed"), measure(folder), strict=True)
    }
    assert (written["folder"], written["against"]) == ("pc40", "base")
    # The wheel of a CUDA build may leave out of its metadata what follows the plus sign.
    assert written["versions"]["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    assert str(tmp_path) not in json.dumps(written)
    card = (folder / "README.md").read_text()
    for figure in found.figures:
        cells = figure.cells().values()
        assert f"| {' | '.join(cells)} |" in card
        assert any(all(cell in line for cell in cells) for line in output.splitlines()), figure.name
    for size in measure(folder):
        assert f"{size.model_parameters:,}" in output
    assert "pooling" not in output
    assert "Embeddings of pairs: mean of the last hidden states." in output
    assert not list(tmp_path.rglob("*.partial"))
    drawn = Path("out.svg").read_text()
    for figure in found.figures:  # texts of an SVG are drawn, and named in comments
        cells = figure.cells()
        assert f"<!-- {cells['dense']} -->" in drawn, figure.name
        assert f"<!-- {cells['compressed']} -->" in drawn, figure.name
    for name, refused in (
        ("out.svg", "is there; expected a file to make"),
        ("out.txt", "ends in 'txt'; expected one of"),
    ):
        assert refused in " ".join(run_cli(*arguments, "--plot", name, code=1).split())
    assert not Path("out.txt").exists()
    again = run_cli(*arguments, "--output", "out.json", code=1)
    assert "is there; expected a file to make" in again
    run_cli(*arguments, "--output", "out.json", "--force")


def test_options_of_the_command_are_those_of_the_function() -> None:
    function, command = (inspect.signature(each).parameters for each in (evaluate, cli.evaluate))
    options = {name: each.default for name, each in command.items() if name not in ("output", "plot", "card", "force")}
    assert {name: each.default for name, each in function.items()} == options


def test_a_table_in_few_bits_is_measured_like_any_other(base: Path) -> None:
    run_cli("compress", base, "--rank", 8, "--coefficient-bits", 4, "--output", "few")
    found = evaluate("few", base)
    assert list(values(found)) == [*STATES, "masked_kl", "masked_top1_agreement", "masked_perplexity"]
    assert found.sizes["compressed"]["table_disk_bytes"] < found.sizes["dense"]["table_disk_bytes"]
    assert 0 < values(found)["mean_cosine"][1] < 0.9999


def test_texts_that_are_read_in_batches_of_any_size_give_the_same(tmp_path: Path, tokenizer: Any) -> None:
    folder, dense = pair("gpt2", tmp_path, tokenizer)
    one, many = (values(evaluate(folder, dense, batch_size=size)) for size in (1, 16))
    for name, expected in one.items():
        assert many[name] == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def rte(tmp_path: Path) -> Path:
    """A folder of GLUE with an RTE of six examples."""
    lines = ["index\tsentence1\tsentence2\tlabel"]
    lines += [f"{n}\tgood w{n}\tfilm w{n + 7}\t{'entailment' if n % 3 else 'not_entailment'}" for n in range(6)]
    (tmp_path / "glue/RTE").mkdir(parents=True)
    (tmp_path / "glue/RTE/dev.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path / "glue"


def test_a_classifier_is_scored_on_its_task(rte: Path, tmp_path: Path, tokenizer: Any) -> None:
    folder, dense = pair("distilbert", tmp_path, tokenizer)
    other = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        other.classifier.weight.neg_()  # so that its answers are others
        other.classifier.bias.neg_()
    other.save_pretrained(folder)
    found = evaluate(folder, dense, task="rte", data_dir=rte)
    figure = found.figures[-1]
    assert (figure.name, figure.on) == ("task_accuracy", "RTE of GLUE, validation, 6 examples")
    lines = [line.split("\t") for line in (rte / "RTE/dev.tsv").read_text().splitlines()[1:]]
    expected = []
    for path in (dense, folder):
        model = AutoModelForSequenceClassification.from_pretrained(path).eval()
        with torch.no_grad():
            places = [
                int(model(**tokenizer(one, other, return_tensors="pt")).logits.argmax()) for _, one, other, _ in lines
            ]
        right = [("entailment", "not_entailment")[place] == line[3] for place, line in zip(places, lines, strict=True)]
        expected.append(100 * sum(right) / 6)
    assert [figure.dense, figure.compressed] == pytest.approx(expected)
    assert expected[0] != expected[1]


@pytest.mark.parametrize(("asked", "limits"), [(None, (512, 128)), (5, (5, 5))])
def test_the_limit_of_length_holds_for_the_task_too(
    asked: int | None,
    limits: tuple[int, int],
    rte: Path,
    tmp_path: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, dense = pair("distilbert", tmp_path, tokenizer)
    lengths = []
    monkeypatch.setattr(
        "hf_projclust.evaluation.comparison.score_classifier",
        lambda *_, max_length, **__: lengths.append(max_length) or {"accuracy": 50.0},
    )
    options = evaluate(folder, dense, task="rte", data_dir=rte, max_length=asked).options
    assert (options["max_length"], options["task_max_length"]) == limits
    assert lengths == [min(limits[1], tokenizer.model_max_length)] * 2


def test_a_bidirectional_model_has_no_causal_perplexity(tmp_path: Path, tokenizer: Any) -> None:
    model = save(BertLMHeadModel(TINY_MODELS["bert"].config), tmp_path / "dense")
    tokenizer.save_pretrained(model)
    assert list(values(evaluate(model, model))) == [*STATES, "kl", "top1_agreement"]


def test_the_tokenizer_may_be_in_either_folder(tmp_path: Path, tokenizer: Any) -> None:
    folder, dense = pair("bert", tmp_path, tokenizer)
    expected = values(evaluate(folder, dense))
    for path in dense.glob("token*"):
        shutil.move(path, folder)
    assert values(evaluate(folder, dense)) == expected
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no tokenizer can be read in .*; expected one of the two"):
        evaluate(folder, dense)


def test_a_dense_folder_is_measured_by_its_memory_and_has_no_card_to_write(tmp_path: Path, tokenizer: Any) -> None:
    _, dense = pair("bert", tmp_path, tokenizer)
    model = TINY_MODELS["bert"].build()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(4).round_().div_(4)
    rounded = save(model, tmp_path / "rounded")
    found = evaluate(rounded, dense)
    assert found.sizes["dense"] == found.sizes["compressed"]
    assert found.sizes["dense"]["model_parameters"] == model.num_parameters()
    assert 0.9 < values(found)["mean_cosine"][1] < 1
    run_cli("evaluate", rounded, "--against", dense)
    assert "holds a dense model" in run_cli("evaluate", rounded, "--against", dense, "--card", code=1)


def bad(**changes: Any) -> dict[str, Any]:
    return {"folder": "out", "against": "dense", **changes}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (bad(folder="none"), "'none' is not a folder; expected the folder of a compressed model"),
        (bad(folder="empty"), "has no config.json"),
        (bad(against="./none"), "is not a folder; expected a folder with a config.json"),
        (bad(against="out"), "'out' is compressed; expected the dense model"),
        (bad(against="gpt2"), "has model type bert, but 'gpt2' has model type gpt2"),
        (bad(against="wider"), "has hidden_size 16, but 'wider' has hidden_size 32"),
        (bad(against="longer"), "has vocab_size 97, but 'longer' has vocab_size 98"),
        (bad(against="other-words"), "have different vocabularies"),
        (bad(text="none.txt"), "no texts 'none.txt'"),
        (bad(sts="none.tsv"), "no file 'none.tsv'"),
        (bad(task="rte"), "class BertForMaskedLM; expected one that ends in ForSequenceClassification"),
        (bad(task="rse"), "task 'rse'"),
        (bad(data_dir="glue"), "data_dir='glue' without a task"),
        (bad(batch_size=0), "batch_size=0; expected a whole number, 1 or more"),
        (bad(max_length=1), "max_length=1; expected a whole number, 2 or more"),
        (bad(seed=-1), "seed=-1; expected a whole number, 0 or more"),
        (bad(device="moon"), "device='moon'"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    options: dict[str, Any], message: str, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = pair("bert", tmp_path, tokenizer)
    tokenizer.save_pretrained(folder)
    model = TINY_MODELS["bert"].build()
    Path("empty").mkdir()
    save(TINY_MODELS["gpt2"].build(), Path("gpt2"))
    config = TINY_MODELS["bert"].config.to_dict()
    save(type(model)(type(model.config)(**config | {"hidden_size": 32})), Path("wider"))
    save(type(model)(type(model.config)(**config | {"vocab_size": 98})), Path("longer"))
    save(model, Path("other-words"))
    words = json.loads(Path("dense/tokenizer.json").read_text().replace('"film"', '"movie"'))
    tokenizer.save_pretrained("other-words")
    Path("other-words/tokenizer.json").write_text(json.dumps(words))
    monkeypatch.setattr("hf_projclust.evaluation.comparison.load_model", None)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        evaluate(**options)
    assert message in str(raised.value)
    arguments = [options.pop("folder")]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", value]
    before = sorted(tmp_path.rglob("*"))
    output = run_cli("evaluate", *arguments, "--output", "x.json", code=1)
    assert output.count("Error:") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dense_model_is_loaded_by_the_class_that_was_compressed(tmp_path: Path, tokenizer: Any) -> None:
    folder, dense = pair("bert", tmp_path, tokenizer)
    body = save(BertModel.from_pretrained(dense), tmp_path / "body")
    tokenizer.save_pretrained(body)
    without_head = BertModel.from_pretrained(dense)  # and with a pooler that the checkpoint lacks
    of_body = save(compress(without_head, num_clusters=3, compression=0.6, token_counts="uniform"), tmp_path / "of")
    found = evaluate(of_body, dense)
    assert found.architecture == "BertModel"
    assert list(values(found)) == STATES
    assert 0 < values(found)["mean_cosine"][1] < 0.9999
    with pytest.raises(ValueError, match=r"lacks weights of a BertForMaskedLM, such as cls\.predictions"):
        evaluate(folder, body)


def test_a_task_is_scored_by_heads_that_both_checkpoints_have(rte: Path, tmp_path: Path, tokenizer: Any) -> None:
    folder, dense = pair("distilbert", tmp_path, tokenizer)
    body = save(AutoModel.from_pretrained(dense), tmp_path / "body")
    tokenizer.save_pretrained(body)
    assert list(values(evaluate(folder, body))) == STATES
    with pytest.raises(ValueError, match="has class DistilBertForSequenceClassification, but .* has class DistilBert"):
        evaluate(folder, body, task="rte", data_dir=rte)


def test_a_body_is_compared_with_the_body(tmp_path: Path, tokenizer: Any) -> None:
    _, dense = pair("bert", tmp_path, tokenizer)
    body = save(BertModel.from_pretrained(dense), tmp_path / "body")
    folder = save(compress(body, num_clusters=3, compression=0.6, token_counts="uniform"), tmp_path / "of-body")
    tokenizer.save_pretrained(body)
    assert list(values(evaluate(folder, body))) == STATES
