"""``hf-projclust recover``: a folder in, a folder out, with what goes along and a card that says what was done."""

import inspect
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import equal_state_dicts, run_cli, write_lines
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_projclust import cli
from hf_projclust.recovery import distillation, recover


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Forty texts of words of the tokenizer, the last four of them by no means new."""
    rng = random.Random(0)
    lines = [" ".join(f"w{rng.randrange(89)}" for _ in range(rng.randint(3, 9))) for _ in range(40)]
    return Path(write_lines(tmp_path / "corpus.txt", *lines))


def recover_cli(folder: Path, text: Path, *more: object, code: int = 0) -> str:
    return run_cli("recover", folder, "--teacher", "org/base", "--text", text, "--output", "out", *more, code=code)


def test_the_command_writes_what_the_function_returns_with_tokenizer_and_card(folder: Path, text: Path) -> None:
    printed = recover_cli(folder, text, "--batch-size", 8, "--epochs", 2, "--seed", 3, "--learning-rate", 0.02)
    texts = text.read_text().splitlines()[:36]
    base, tokenizer = AutoModelForMaskedLM.from_pretrained("org/base"), AutoTokenizer.from_pretrained(folder)
    start = AutoModelForMaskedLM.from_pretrained(folder)
    expected = recover(start, base, tokenizer, texts, batch_size=8, num_epochs=2, seed=3, learning_rate=0.02)
    assert equal_state_dicts(AutoModelForMaskedLM.from_pretrained("out"), expected)
    assert AutoTokenizer.from_pretrained("out")("good film") == tokenizer("good film")
    assert "on 4 texts that were not trained on: 0." in printed

    of_start, of_out = (json.loads(Path(name, "config.json").read_text())["projclust"] for name in (folder, "out"))
    done = {"steps": 9, "learning_rate": 0.02, "batch_size": 8, "max_length": 128, "seed": 3, "texts": 36}
    assert of_out["recovery"] == [done]
    assert of_out["solver"] == of_start["solver"]
    assert of_out["provenance"] == of_start["provenance"]
    assert of_out["fidelity"]["mean_cosine"] != of_start["fidelity"]["mean_cosine"]
    card = ModelCard.load("out/README.md").text
    assert "trained for 9 steps of 8 to give the outputs of the dense model on 36 texts without labels" in card
    assert "The error of the table was measured when the model was compressed, the rest after its recovery" in card
    assert f"those of the dense model: {of_out['fidelity']['mean_cosine']:.4f}" in card
    assert "\n\n```bash\nhf-projclust compress" in card
    assert "Recovered" not in ModelCard.load(folder / "README.md").text
    run_cli("info", "out")


def test_an_interrupted_command_that_is_repeated_goes_on(
    folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--max-steps", 10, "--batch-size", 8)
    recover_cli(folder, text, *options)
    shutil.move("out", "whole")
    calls: list[int] = []
    stop_after = [7, 99]

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > stop_after[0]:
            raise OSError("the power went")
        return found(*args, **kwargs)

    found = distillation.distance
    monkeypatch.setattr(distillation, "distance", counted)
    printed = recover_cli(folder, text, *options, "--checkpoint", "run", code=1)
    assert "the power went" in printed
    assert not Path("out").exists()
    calls.clear()
    stop_after.pop(0)
    recover_cli(folder, text, *options, "--checkpoint", "run")
    assert len(calls) == 10 - 6
    assert equal_state_dicts(*(AutoModelForMaskedLM.from_pretrained(name) for name in ("whole", "out")))


def test_fewer_than_ten_texts_are_compared_by_the_bundled_sentences(folder: Path, tmp_path: Path) -> None:
    few = Path(write_lines(tmp_path / "few.txt", "good film", "", "bad film"))
    assert "on 50 texts that were not trained on" in recover_cli(folder, few)


def test_a_model_that_became_worse_is_warned_of(folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = distillation.distance
    monkeypatch.setattr(distillation, "distance", lambda *args, **kwargs: -found(*args, **kwargs))
    printed = recover_cli(folder, text, "--epochs", 5, "--batch-size", 8, "--learning-rate", 0.05)
    assert "the sentence embeddings became worse" in " ".join(printed.split())


def test_a_cosine_that_is_no_number_is_warned_of(folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([0.9, 0.9, float("nan")])
    monkeypatch.setattr("hf_projclust.evaluation.fidelity.mean_cosine", lambda *_: next(found))
    assert "became worse" in " ".join(recover_cli(folder, text, "--max-steps", 1).split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--teacher", "pc40"], "has a ProjClustBertConfig; expected the BertConfig of a BertForMaskedLM"),
        (["--teacher", "no/such/model"], "is not a folder"),
        (["--output", "org"], "holds"),
        (["--output", "org", "--force"], "is or holds"),
        (["--output", ".", "--force"], "is or holds"),
        (["--checkpoint", "out/run"], "one is in the other"),
        (["--checkpoint", "org"], "holds other things"),
        (["--text", "nowhere.txt"], "no texts 'nowhere.txt'; expected a text file"),
        (["--device", "nowhere"], "cannot be used here"),
        (["--learning-rate", "2"], "expected a share of the size of the factors"),
    ],
)
def test_errors_are_messages_before_anything_is_written(
    folder: Path, text: Path, more: list[str], message: str
) -> None:
    before = sorted(os.walk("."))
    assert message in " ".join(recover_cli(folder, text, *more, code=1).split())
    assert sorted(os.walk(".")) == before


def test_options_of_the_command_are_those_of_the_function() -> None:
    function, command = (inspect.signature(found).parameters for found in (recover, cli.recover))
    objects = ("model", "teacher", "tokenizer", "texts", "training_arguments")  # given otherwise, or not at all
    options = {name: found.default for name, found in function.items() if name not in objects}
    of_folders = ("folder", "teacher", "text", "output", "force")
    assert {name: found.default for name, found in command.items() if name not in of_folders} == options
