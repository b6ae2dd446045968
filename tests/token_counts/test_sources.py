"""Sources as they are written: what is refused before a model is loaded, and how they are named."""

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hf_projclust.token_counts import check_sources, count_tokens, describe_sources

BAD_BEFORE_A_MODEL = [
    (torch.ones(2, 2), ["shape (2, 2)", "expected one dimension", "Flatten"]),
    (torch.tensor(1.0), ["shape ()", "expected one dimension"]),
    (torch.tensor([1, float("nan")]), ["NaN or infinity at token id 1", "expected finite", "Replace"]),
    (torch.tensor([float("inf"), 1]), ["NaN or infinity at token id 0", "expected finite", "Replace"]),
    ([1, 2, -3], ["a negative number at token id 2", "0 or more", "not their logarithms"]),
    (torch.zeros(3), ["0 for every token", "some above 0", '"uniform"']),
    ([], ["no token counts", "expected a number a token", "words:en"]),
    (None, ["NoneType", "expected a number a token", "words:en"]),
    (["uniform", 2], ["list", "expected a number a token", "words:en"]),
    (Path("corpus.txt"), ["Path", "one or more strings"]),
    ("0*uniform", ["weight '0'", "above 0", "0.3*uniform"]),
    ("-1*words:en", ["weight '-1'", "above 0", "0.3*words:en"]),
    ("nan*uniform", ["weight 'nan'", "finite"]),
    ("inf*uniform", ["weight 'inf'", "finite"]),
    ("words:", ["nothing after 'words:'", "words:en,zh"]),
    ("dataset:", ["nothing after 'dataset:'", "dataset:NAME"]),
    ("prompt: ", ["nothing after 'prompt:'", "prompt:TEXT"]),
    ("words:en,xx", ["language 'xx'", "ar, bg, bn", "zh", "data set instead"]),
    ("words:en,", ["language ''", "ar, bg, bn"]),
    ("prompt:query: ", ["'prompt:query: ' alone", 'such as "words:en"']),
    (["prompt:a", "2*prompt:b"], ["'prompt:a', '2*prompt:b' alone", "Add"]),
    ("dataset:./there,config", ["in a folder that is not there", "or an id on the Hub", "Check"]),
    (
        "no/such.txt",
        ["neither a file nor a folder", "uniform", "tokenizer", "words:en", "dataset:", "prompt:", "Check"],
    ),
    ("heavy*uniform", ["neither a file nor a folder", "0.3*corpus.txt"]),
    ("", ["neither a file nor a folder"]),
]


@pytest.mark.parametrize(
    ("sources", "parts"), BAD_BEFORE_A_MODEL, ids=[repr(row[0])[:30] for row in BAD_BEFORE_A_MODEL]
)
def test_bad_sources_are_refused_before_a_model_is_loaded(
    sources: Any, parts: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    is_absent = not {"neither a file nor a folder", "in a folder that is not there"}.isdisjoint(parts)
    error = FileNotFoundError if is_absent else ValueError
    for call in (lambda: check_sources(sources), lambda: count_tokens(sources, tokenizer, 97)):
        with pytest.raises(error) as refused:
            call()
        for part in parts:
            assert part in str(refused.value)


@pytest.mark.parametrize(
    ("sources", "package", "command"),
    [
        ("words:en", "wordfreq", "pip install 'hf-projclust[words]'"),
        ("dataset:org/name", "datasets", "pip install 'hf-projclust[train]'"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    sources: str, package: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as refused:
        check_sources(sources)
    assert f"the package {package}" in str(refused.value)
    assert command in str(refused.value)


def test_a_description_names_sources_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpora").mkdir()
    monkeypatch.chdir(tmp_path / "corpora")
    folder = tmp_path / "corpora"
    for given, expected in (
        ("words:en,zh", "words:en,zh"),
        (["0.3*uniform", "prompt:/a/b: "], ["0.3*uniform", "prompt:/a/b: "]),
        (["dataset:org/name,config"], ["dataset:org/name,config"]),
        (f"0.3*{folder}/corpus.txt", "0.3*corpus.txt"),
        ([f"{folder}/", ".", "../corpora"], ["corpora"] * 3),
        (f"2*dataset:{folder},config", "2*dataset:corpora,config"),
        ("dataset:./there", "dataset:there"),
        (torch.ones(3), "tensor"),
        ([1.0, 2.0], "tensor"),
    ):
        described = describe_sources(given)
        assert described == expected
        assert str(tmp_path) not in json.dumps(described)


def test_packages_are_imported_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    imported, real = [], builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *rest: imported.append(name) or real(name, *rest))
    for package in ("wordfreq", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    check_sources(["uniform", "tokenizer"])
    assert not {"wordfreq", "datasets"} & set(imported)
