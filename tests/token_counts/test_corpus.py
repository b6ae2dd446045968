"""Tokens of text files and data sets: by hand, against a slow reference, and what is refused."""

import json
import logging as python_logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import write_lines
from tiny_tokenizers import TEXTS
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from hf_projclust.token_counts import check_sources, count_tokens


def test_a_corpus_of_three_lines_is_counted_by_hand(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """[CLS] and [SEP] stand in each of three texts, good 3 times, bad and film once; blank lines are no texts."""
    corpus = write_lines(tmp_path / "corpus.txt", "good good", "", "good film", "   ", "bad", "")
    shares = count_tokens(corpus, tokenizer, 97)
    expected = torch.zeros(97, dtype=torch.float64)
    expected[[2, 3, 5, 6, 7]] = torch.tensor([3, 3, 3, 1, 1], dtype=torch.float64) / 11
    torch.testing.assert_close(shares, expected)
    assert shares.dtype == torch.float64
    torch.testing.assert_close(count_tokens(corpus, tokenizer, 100)[:97], expected)  # a table that was padded


def test_a_folder_is_its_text_files(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_lines(tmp_path / "b.txt", "good")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfbad\r\nfilm\r\n")  # a byte order mark, and line ends of Windows
    write_lines(tmp_path / "c.md", "w1")
    shares = count_tokens(str(tmp_path), tokenizer, 97) * 9
    assert shares[[2, 3, 5, 6, 7]].tolist() == pytest.approx([3, 3, 1, 1, 1])


def test_a_corpus_equals_texts_counted_one_by_one(tmp_path: Path, any_tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = write_lines(tmp_path / "corpus.txt", *TEXTS * 600, " ".join(TEXTS * 50))
    size = len(any_tokenizer) + 3
    counter = Counter(i for text in TEXTS for i in any_tokenizer(text, verbose=False)["input_ids"] for _ in range(600))
    counter.update(any_tokenizer(" ".join(TEXTS * 50), verbose=False)["input_ids"])
    expected = torch.tensor([counter[i] for i in range(size)], dtype=torch.float64)
    torch.testing.assert_close(count_tokens(corpus, any_tokenizer, size), expected / expected.sum())


def test_counting_shows_its_progress_and_warns_of_nothing(
    tmp_path: Path, wordpiece: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture, upstream_log: Any
) -> None:
    corpus = write_lines(tmp_path / "corpus.txt", *["the film of the film of the film"] * 1001)
    logging.enable_progress_bar()
    with upstream_log.at_level(python_logging.WARNING):
        count_tokens(corpus, wordpiece, 120)
    shown = capsys.readouterr().err
    assert "Counting tokens of corpus.txt: 1001 texts" in shown
    assert str(tmp_path) not in shown
    assert not upstream_log.records
    logging.disable_progress_bar()
    try:
        count_tokens(corpus, wordpiece, 120)
    finally:
        logging.enable_progress_bar()
    assert capsys.readouterr().err == ""


def test_corpora_without_text_or_of_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_lines(tmp_path / "folder" / "notes.md", "text")
    for path in (
        write_lines(tmp_path / "empty.txt"),
        write_lines(tmp_path / "blank.txt", " ", "", "\t"),
        tmp_path / "folder",
    ):
        with pytest.raises(ValueError, match="has no text; expected at least one line.*Check"):
            check_sources(str(path))
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8.*expected plain UTF-8 text.*Save"):
        check_sources(str(tmp_path / "latin.txt"))


@pytest.mark.parametrize("size_bytes", [None, 300])  # whole, and cut off within its numbers
def test_a_file_of_tensors_is_refused_whole_or_damaged(tmp_path: Path, size_bytes: int | None) -> None:
    path = tmp_path / "counts.pt"
    torch.save(torch.arange(1000), path)
    path.write_bytes(path.read_bytes()[:size_bytes])
    with pytest.raises(ValueError, match="is not UTF-8.*expected plain UTF-8 text"):
        check_sources(str(path))


# Data sets


def test_a_local_folder_is_a_data_set(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Two string columns, one without a value in the first row; numbers are no text."""
    rows = [{"a": "good", "n": 5, "b": None}, {"a": "", "n": 6, "b": "film film"}, {"a": "bad", "n": 7, "b": "good"}]
    write_lines(tmp_path / "rows.jsonl", *map(json.dumps, rows))
    shares = count_tokens(f"dataset:{tmp_path}", tokenizer, 97) * 13
    assert shares[[2, 3, 5, 6, 7]].tolist() == pytest.approx([4, 4, 2, 1, 2])


def test_the_split_train_is_read_or_else_the_first(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "texts").mkdir()
    write_lines(tmp_path / "texts" / "test.txt", "bad", "", "bad")
    only_test = count_tokens(f"dataset:{tmp_path / 'texts'}", tokenizer, 97)
    assert only_test[[5, 6]].tolist() == pytest.approx([0, 1 / 3])
    write_lines(tmp_path / "texts" / "train.txt", "good")
    both = count_tokens(f"dataset:{tmp_path / 'texts'}", tokenizer, 97)
    assert both[[5, 6]].tolist() == pytest.approx([1 / 3, 0])


def test_the_split_train_is_read_wherever_it_stands(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("bad", "train")}
    splits = {name: rows.to_iterable_dataset() for name, rows in splits.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, streaming: splits)
    assert count_tokens("dataset:org/name", tokenizer, 97)[[1, 6]].tolist() == pytest.approx([1 / 3, 0])


def test_a_data_set_that_holds_no_text_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for name, row in (("numbers", {"n": 1, "m": 2.5}), ("blank", {"text": " "})):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "rows.jsonl", json.dumps(row))
    with pytest.raises(ValueError, match="has the columns n, m; expected at least one of strings. Choose another"):
        count_tokens(f"dataset:{tmp_path / 'numbers'}", tokenizer, 97)
    with pytest.raises(ValueError, match="has no text; expected at least one"):
        count_tokens(f"dataset:{tmp_path / 'blank'}", tokenizer, 97)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="could not be loaded; expected a folder of text.*Check the spelling"):
        count_tokens(f"dataset:{tmp_path / 'empty'}", tokenizer, 97)
