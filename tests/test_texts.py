"""Texts and scored pairs: which files are read, how, and what is refused."""

from pathlib import Path

import pytest

from hf_projclust.evaluation.fidelity import bundled_sentences
from hf_projclust.evaluation.texts import read_scored_pairs, read_texts


def test_texts_are_the_bundled_sentences_unless_a_file_is_named(tmp_path: Path) -> None:
    assert read_texts().lines == bundled_sentences()
    assert read_texts().name == "50 English sentences that come with hf_projclust"
    (tmp_path / "my lines.txt").write_bytes("\ufeffone\n\n  \r\n two \nünf".encode())
    found = read_texts(tmp_path / "my lines.txt")
    assert (found.name, found.lines) == ("my lines.txt, 3 lines", ["one", " two ", "ünf"])
    assert read_texts(tmp_path).lines == found.lines


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no texts .* Check the spelling"), (b" \n\n", "no line that is not blank"), (b"\xe9", "is not UTF-8")],
)
def test_files_that_are_no_texts_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "texts").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_texts(tmp_path / "texts")


def test_pairs_of_the_layout_of_glue_are_read_without_quoting(tmp_path: Path) -> None:
    lines = ["index\tsentence1\tsentence2\tscore\tmore", '0\t"Stop, he said.\tStop."\t4.5\tx', "1\ta\tb\t0"]
    (tmp_path / "dev.tsv").write_text("\n".join(lines) + "\n")
    pairs = read_scored_pairs(tmp_path / "dev.tsv")
    assert (pairs.first, pairs.second, pairs.scores) == (['"Stop, he said.', "a"], ['Stop."', "b"], [4.5, 0.0])
    assert pairs.name == "dev.tsv, 2 pairs"


def test_pairs_separated_by_commas_are_read_with_quoting_and_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('score,sentence2,sentence1\n0.5,b,"one, and ""two"""\n\n1,d,c\n')
    pairs = read_scored_pairs(tmp_path / "pairs.csv")
    assert (pairs.first, pairs.second, pairs.scores) == (['one, and "two"', "c"], ["b", "d"], [0.5, 1.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        (b"", "has no column sentence1, sentence2, score"),
        (b"sentence1\tsentence2\nx\ty\n", "has no column score but sentence1, sentence2"),  # the test part of STS-B
        (b"sentence1\tsentence2\tscore\na\tb\t1\nc\td\n", r"row 3 of .* is \['c', 'd'\]; expected"),  # cut
        (b"sentence1\tsentence2\tscore\na\tb\thigh\n", "row 2 of .* a finite number"),
        (b"sentence1\tsentence2\tscore\na\tb\tnan\nc\td\t1\n", "row 2 of .* a finite number"),
        (b"sentence1\tsentence2\tscore\na\tb\t1\nc\td\t1\n", "has 1 different scores"),
        (b"sentence1,sentence2,score\n", "has 0 different scores"),
        (b"sentence1\tsentence2\tscore\n\xe9\tb\t1\n", "cannot be read"),
    ],
)
def test_files_that_are_no_scored_pairs_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "pairs").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_scored_pairs(tmp_path / "pairs")
