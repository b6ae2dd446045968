"""Shares of running text: by hand, against a slow reference, for every kind of tokenizer and of source."""

import builtins
import json
import logging as python_logging
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import wordfreq
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_python import PythonBackend
from transformers.utils import logging

from hf_projclust.token_counts import check_sources, count_tokens, describe_sources
from hf_projclust.token_counts.from_tokenizer import count_from_tokenizer
from hf_projclust.token_counts.running_text import CAPITALISED_SHARE, MARKS
from hf_projclust.token_counts.words import word_frequencies

TEXTS = [
    "the good film, and the bad film.",
    "The cat (in 2019) saw the dog: it was good!",
    'don\'t the films of 1984 say "good"?',
    "the end of the film - and of the story; then more of the same",
]
PUNCTUATION = list(MARKS)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Special tokens around every text, and a length that most texts in these tests exceed."""
    ids = {token: backend.token_to_id(token) for token in SPECIAL}
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=4,
    )


def build_wordpiece() -> PreTrainedTokenizerFast:
    words = ["the", "of", "film", "good", "##s", "##m", "fil", "don", "cat", "##ed"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789")
    vocabulary = [*SPECIAL, "[unused0]", *PUNCTUATION, *letters, *(f"##{x}" for x in letters if x not in "sm"), *words]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrap(backend)


def build_bpe() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 5, trainer)
    return wrap(backend)


def build_unigram() -> PreTrainedTokenizerFast:
    pieces = [(token, 0.0) for token in SPECIAL] + [("<0x41>", 0.0), ("▁the", -1.5), ("▁", -2.0), ("▁film", -3.0)]
    pieces += [(mark, -4.0) for mark in PUNCTUATION] + [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces += [(digit, -5.5) for digit in "0123456789"] + [("▁20", -5.2), ("T", -6.0), ("的", -6.5), ("，", -6.5)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return wrap(backend)


class Slow(PythonBackend):
    """A tokenizer of three words, in Python."""

    ids = {"[UNK]": 0, "the": 1, "of": 2, "film": 3}

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.ids)[index]


BUILDERS = {"wordpiece": build_wordpiece, "bpe": build_bpe, "unigram": build_unigram}


@pytest.fixture(scope="module", params=BUILDERS.values(), ids=BUILDERS.keys())
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer of each kind in turn."""
    return request.param()


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerFast:
    return build_wordpiece()


@pytest.fixture
def small_words(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A language of a few words, in place of the 300,000 of English."""
    words = {
        "the": 0.05,
        "of": 0.02,
        "don't": 0.004,
        "films": 0.001,
        "cat": 0.001,
        "7": 0.002,
        "00": 0.006,
        "0000": 0.003,
    }
    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda language, wordlist: dict(words))
    return words


def share_of(shares: torch.Tensor, tokenizer: PreTrainedTokenizerBase, token: str) -> float:
    return float(shares[tokenizer.get_vocab()[token]])


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


# Corpora


def test_a_corpus_of_three_lines_is_counted_by_hand(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """[CLS] and [SEP] stand in each of three texts, good 3 times, bad and film once; blank lines are no texts."""
    corpus = write(tmp_path / "corpus.txt", "good good", "", "good film", "   ", "bad", "")
    shares = count_tokens(corpus, tokenizer, 97)
    expected = torch.zeros(97, dtype=torch.float64)
    expected[[2, 3, 5, 6, 7]] = torch.tensor([3, 3, 3, 1, 1], dtype=torch.float64) / 11
    torch.testing.assert_close(shares, expected)
    assert shares.dtype == torch.float64
    torch.testing.assert_close(count_tokens(corpus, tokenizer, 100)[:97], expected)  # a table that was padded


def test_a_folder_is_its_text_files(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write(tmp_path / "b.txt", "good")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfbad\r\nfilm\r\n")  # a byte order mark, and line ends of Windows
    write(tmp_path / "c.md", "w1")
    shares = count_tokens(str(tmp_path), tokenizer, 97) * 9
    assert shares[[2, 3, 5, 6, 7]].tolist() == pytest.approx([3, 3, 1, 1, 1])


def test_weights_are_those_of_sources_whatever_their_length(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    long = write(tmp_path / "long.txt", *["good film"] * 2500)
    short = write(tmp_path / "short.txt", "bad bad")
    for sources, of_long in (
        ([long, short], 0.5),
        ([f"0.25*{long}", f".75*{short}"], 0.25),
        ([f"3*{long}", short], 0.75),
    ):
        shares = count_tokens(sources, tokenizer, 97)
        assert shares[[2, 3]].tolist() == pytest.approx([0.25, 0.25])
        assert shares[[5, 6, 7]].tolist() == pytest.approx([of_long / 4, (1 - of_long) / 2, of_long / 4])
    mixed = count_tokens([f"3*{short}", "uniform"], tokenizer, 97)
    torch.testing.assert_close(mixed, 0.75 * count_tokens(short, tokenizer, 97) + 0.25 / 97)


def test_a_corpus_equals_texts_counted_one_by_one(tmp_path: Path, any_tokenizer: PreTrainedTokenizerFast) -> None:
    corpus = write(tmp_path / "corpus.txt", *TEXTS * 600, " ".join(TEXTS * 50))
    size = len(any_tokenizer) + 3
    counter = Counter(i for text in TEXTS for i in any_tokenizer(text, verbose=False)["input_ids"] for _ in range(600))
    counter.update(any_tokenizer(" ".join(TEXTS * 50), verbose=False)["input_ids"])
    expected = torch.tensor([counter[i] for i in range(size)], dtype=torch.float64)
    torch.testing.assert_close(count_tokens(corpus, any_tokenizer, size), expected / expected.sum())


def test_counting_shows_its_progress_and_warns_of_nothing(
    tmp_path: Path, wordpiece: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture, upstream_log: Any
) -> None:
    corpus = write(tmp_path / "corpus.txt", *["the film of the film of the film"] * 1001)
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


# Data sets


def test_a_local_folder_is_a_data_set(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Two string columns, one without a value in the first row; numbers are no text."""
    rows = [{"a": "good", "n": 5, "b": None}, {"a": "", "n": 6, "b": "film film"}, {"a": "bad", "n": 7, "b": "good"}]
    write(tmp_path / "rows.jsonl", *map(json.dumps, rows))
    shares = count_tokens(f"dataset:{tmp_path}", tokenizer, 97) * 13
    assert shares[[2, 3, 5, 6, 7]].tolist() == pytest.approx([4, 4, 2, 1, 2])


def test_the_split_train_is_read_or_else_the_first(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts" / "test.txt", "bad", "", "bad")
    only_test = count_tokens(f"dataset:{tmp_path / 'texts'}", tokenizer, 97)
    assert only_test[[5, 6]].tolist() == pytest.approx([0, 1 / 3])
    write(tmp_path / "texts" / "train.txt", "good")
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
        write(tmp_path / name / "rows.jsonl", json.dumps(row))
    with pytest.raises(ValueError, match="has the columns n, m; expected at least one of strings. Choose another"):
        count_tokens(f"dataset:{tmp_path / 'numbers'}", tokenizer, 97)
    with pytest.raises(ValueError, match="has no text; expected at least one"):
        count_tokens(f"dataset:{tmp_path / 'blank'}", tokenizer, 97)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="could not be loaded; expected a folder of text.*Check the spelling"):
        count_tokens(f"dataset:{tmp_path / 'empty'}", tokenizer, 97)


# Words


def test_words_are_those_counted_one_by_one(wordpiece: PreTrainedTokenizerFast, small_words: dict[str, float]) -> None:
    """The slow reference tokenises each word alone; capitals fall together in an uncased tokenizer."""
    frequencies = word_frequencies(wordfreq, "en")
    total = sum(frequencies.values())
    expected = torch.zeros(len(wordpiece), dtype=torch.float64)
    for word, frequency in frequencies.items():
        for index in wordpiece(word, add_special_tokens=False)["input_ids"]:
            expected[index] += frequency
    for mark, rate in MARKS.items():
        inside = sum(frequency * word.count(mark) for word, frequency in frequencies.items())
        expected[wordpiece.convert_tokens_to_ids(mark)] += max(0.0, rate / 1000 * total - inside)
    expected[[wordpiece.cls_token_id, wordpiece.sep_token_id]] += total / 20
    torch.testing.assert_close(count_tokens("words:en", wordpiece, len(wordpiece)), expected / expected.sum())


def test_numbers_get_the_frequencies_of_wordfreq() -> None:
    frequencies = word_frequencies(wordfreq, "en")
    for number in ("10", "12", "99", "100", "365", "1984", "2019", "9999"):
        assert frequencies[number] == pytest.approx(wordfreq.word_frequency(number, "en"), rel=1e-2)
    assert {"00", "000", "0000"}.isdisjoint(frequencies)
    assert frequencies["7"] == pytest.approx(wordfreq.word_frequency("7", "en"), rel=1e-2)


@pytest.mark.parametrize(
    ("language", "build"), [("en", build_bpe), ("zh", build_unigram)]
)  # by spaces; of full-width marks, without spaces
def test_real_word_lists_give_every_kind_of_token_its_share(language: str, build: Any) -> None:
    tokenizer = build()
    shares = count_tokens(f"words:{language}", tokenizer, len(tokenizer))
    assert shares.sum() == pytest.approx(1)
    assert shares.isfinite().all()
    assert shares.min() >= 0
    assert share_of(shares, tokenizer, "[CLS]") == share_of(shares, tokenizer, "[SEP]") > 0.005
    assert share_of(shares, tokenizer, "[PAD]") == share_of(shares, tokenizer, "[MASK]") == 0
    assert all(share_of(shares, tokenizer, mark) > 0 for mark in PUNCTUATION if mark != "(")
    assert sum(share_of(shares, tokenizer, digit) for digit in "0123456789") > 0.001
    if language == "zh":
        assert share_of(shares, tokenizer, "的") > share_of(shares, tokenizer, "，") > 0.001


def test_marks_next_to_marks_and_leading_spaces_give_no_token_of_their_own(small_words: dict[str, float]) -> None:
    """A piece ",." exists, and "▁" alone; neither stands in running text."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(",.", -1.0), ("▁the", -1.0), ("▁of", -1.0), ("▁a", -1.0)]
    pieces += [
        ("▁", -3.0),
        *((mark, -3.0) for mark in PUNCTUATION),
        *((x, -9.0) for x in "TthedonfilmscCDF'0123456789aO"),
    ]
    backend = Tokenizer(models.Unigram(pieces, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = wrap(backend)
    shares = count_tokens("words:en", tokenizer, len(tokenizer))
    assert share_of(shares, tokenizer, ",.") == share_of(shares, tokenizer, "▁a") == 0
    assert share_of(shares, tokenizer, ",") / share_of(shares, tokenizer, ".") == pytest.approx(61.6 / 65.3)
    ratio = share_of(shares, tokenizer, "▁the") / share_of(shares, tokenizer, "▁of")
    assert ratio == pytest.approx(0.05 / 0.02)


def test_a_word_has_a_capital_as_often_as_a_sentence_ends(small_words: dict[str, float]) -> None:
    backend = Tokenizer(
        models.WordLevel({x: i for i, x in enumerate([*SPECIAL, "the", "The", "of"])}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = wrap(backend)
    shares = count_tokens("words:en", tokenizer, len(tokenizer))
    the, capital = share_of(shares, tokenizer, "the"), share_of(shares, tokenizer, "The")
    assert capital / (the + capital) == pytest.approx(CAPITALISED_SHARE)
    assert pytest.approx((65.3 + 5.6 + 3.3) / 1000) == CAPITALISED_SHARE


def test_languages_have_equal_parts(wordpiece: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {"en": {"the": 0.5, "of": 0.4}, "is": {"film": 0.02, "good": 0.01}}
    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda language, wordlist: lists[language])
    size = len(wordpiece)
    one_by_one = (count_tokens("words:en", wordpiece, size) + count_tokens("words:is", wordpiece, size)) / 2
    torch.testing.assert_close(count_tokens("words:en, is", wordpiece, size), one_by_one)
    torch.testing.assert_close(count_tokens(["words:en", "words:is"], wordpiece, size), one_by_one)


def test_chinese_words_have_no_spaces_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordfreq, "get_frequency_dict", lambda language, wordlist: {"的": 0.5, "film": 0.1})
    tokenizer = build_unigram()
    shares = count_tokens("words:zh", tokenizer, len(tokenizer))
    assert 0 < share_of(shares, tokenizer, "▁") < share_of(shares, tokenizer, "的") / 10
    assert share_of(shares, tokenizer, "▁film") > 0


# Prompts


def test_a_prompt_stands_once_in_every_text(tmp_path: Path, any_tokenizer: PreTrainedTokenizerFast) -> None:
    """That is what counting the texts with the prompt in front of them gives, where words do not change by it."""
    size, texts = len(any_tokenizer), ["the film", "good of the film", "film"]
    prompt = "film:" if "Ġ" in any_tokenizer.get_vocab() else "film: "  # or the first word would get a space
    plain = write(tmp_path / "plain.txt", *texts)
    prompted = write(tmp_path / "prompted.txt", *(prompt + text for text in texts))
    shares = count_tokens([plain, f"prompt:{prompt}"], any_tokenizer, size)
    torch.testing.assert_close(shares, count_tokens(prompted, any_tokenizer, size))
    spaced = count_tokens([plain, "prompt:film:  "], any_tokenizer, size)
    torch.testing.assert_close(spaced, shares)  # a space before a word is the word's


def test_the_weight_of_a_prompt_is_how_often_it_stands_in_a_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = write(tmp_path / "corpus.txt", "good good", "film")  # 7 tokens in 2 texts
    for weight in (0.5, 1, 3):
        shares = count_tokens([f"{weight}*prompt:bad w1 bad", corpus], tokenizer, 97)
        total = 7 + weight * 2 * 3
        assert shares[[2, 5, 6, 9]].tolist() == pytest.approx([x / total for x in (2, 2, weight * 4, weight * 2)])
    plain, heavy = (count_tokens([f"{weight}*{corpus}", "prompt:bad"], tokenizer, 97) for weight in (1, 5))
    torch.testing.assert_close(plain, heavy)
    uniform = count_tokens(["uniform", "prompt:2*w3"], tokenizer, 97)  # 2, * and w3; a text of 20 tokens
    assert uniform[11] == pytest.approx((1 / 97 + 1 / 20) / (1 + 3 / 20))


# From the tokenizer


def test_unigram_shares_are_those_of_its_scores() -> None:
    tokenizer = build_unigram()
    tokenizer.add_tokens(["<added>"])
    shares = count_tokens("tokenizer", tokenizer, len(tokenizer) + 1)
    the = share_of(shares, tokenizer, "▁the")
    for token, score in (("▁", -2.0), ("▁film", -3.0), (",", -4.0), ("q", -5.0), ("的", -6.5)):
        assert share_of(shares, tokenizer, token) / the == pytest.approx(math.exp(score + 1.5))
    assert share_of(shares, tokenizer, "[MASK]") == share_of(shares, tokenizer, "[UNK]") == 0
    rarest = share_of(shares, tokenizer, "的")
    assert share_of(shares, tokenizer, "<0x41>") == pytest.approx(rarest)
    assert share_of(shares, tokenizer, "<added>") == pytest.approx(rarest)
    assert share_of(shares, tokenizer, "[CLS]") == share_of(shares, tokenizer, "[SEP]") == pytest.approx(0.05 / 1.1)
    assert shares[-1] == 0


def test_ids_of_scores_may_differ_from_their_places(tmp_path: Path) -> None:
    """Tokens that are added before the pieces, as fairseq models have, do not move scores to other ids."""
    tokenizer = build_unigram()
    ids = tokenizer.get_vocab()
    use = count_from_tokenizer(tokenizer, len(tokenizer))
    assert use.counts.argsort(descending=True)[0] == ids["▁the"]
    tokenizer.get_vocab = lambda: {token: index + 2 for token, index in ids.items() if token not in SPECIAL}
    moved = count_from_tokenizer(tokenizer, len(tokenizer) + 2)
    assert moved.counts.argsort(descending=True)[0] == ids["▁the"] + 2


def test_the_order_of_a_byte_pair_vocabulary_is_zipfs_law() -> None:
    tokenizer = build_bpe()
    tokenizer.add_tokens(["added"])
    shares = count_tokens("tokenizer", tokenizer, len(tokenizer))
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    several = [i for i, name in enumerate(names) if len(name.replace("Ġ", "")) > 1 and name not in [*SPECIAL, "added"]]
    scaled = shares[several] / shares[several[0]]
    expected = [3.7 / (position + 2.7) for position in range(1, len(several) + 1)]
    assert scaled.tolist() == pytest.approx(expected)
    assert share_of(shares, tokenizer, "q") == pytest.approx(float(shares[several[49]]))
    assert share_of(shares, tokenizer, "added") == pytest.approx(float(shares[several[-1]]))
    assert share_of(shares, tokenizer, "é") == pytest.approx(float(shares[several[-1]]))


def test_single_characters_and_unused_tokens_stand_out_of_the_order() -> None:
    words = [f"word{i}" for i in range(200)]
    vocabulary = [*SPECIAL, "[unused0]", "[unused1]", ",", "q", "的", "##q", *words]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer = wrap(backend)
    shares = count_tokens("tokenizer", tokenizer, len(tokenizer))
    first = share_of(shares, tokenizer, "word0")
    for token, position in (("word9", 10), ("q", 50), ("##q", 50), ("的", 200), ("word199", 200)):
        assert share_of(shares, tokenizer, token) / first == pytest.approx(3.7 / (position + 2.7))
    assert share_of(shares, tokenizer, "[unused1]") == share_of(shares, tokenizer, "[MASK]") == 0
    counts = count_from_tokenizer(tokenizer, len(tokenizer)).counts
    before = sum(1 / (position + 2.7) for position in [*range(1, 201), 50, 50, 50, 200])
    assert counts[tokenizer.convert_tokens_to_ids(",")] / counts[tokenizer.convert_tokens_to_ids("word0")] == (
        pytest.approx(61.6 / 1000 * before * 3.7)
    )


def test_a_vocabulary_of_single_characters_is_about_equal() -> None:
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 500)]
    backend = Tokenizer(models.WordLevel({x: i for i, x in enumerate([*SPECIAL, *characters])}, unk_token="[UNK]"))
    tokenizer = wrap(backend)
    shares = count_tokens("tokenizer", tokenizer, len(tokenizer))
    assert shares[len(SPECIAL) :].unique().numel() == 1


def test_marks_and_special_tokens_get_their_share_in_every_kind(any_tokenizer: PreTrainedTokenizerFast) -> None:
    shares = count_tokens("tokenizer", any_tokenizer, len(any_tokenizer))
    assert shares.sum() == pytest.approx(1)
    assert share_of(shares, any_tokenizer, "[CLS]") == pytest.approx(0.05 / 1.1)
    assert all(share_of(shares, any_tokenizer, token) == 0 for token in ("[PAD]", "[UNK]", "[MASK]"))
    assert share_of(shares, any_tokenizer, ",") > 0.005
    assert share_of(shares, any_tokenizer, ".") > 0.005


def test_a_slow_tokenizer_has_an_order_but_no_offsets(tmp_path: Path) -> None:
    shares = count_tokens("tokenizer", Slow(unk_token="[UNK]"), 4)
    total = 1 / 3.7 + 1 / 4.7 + 1 / 5.7
    assert shares.tolist() == pytest.approx([0, 1 / 3.7 / total, 1 / 4.7 / total, 1 / 5.7 / total])
    corpus = write(tmp_path / "corpus.txt", "the film", "of the the")
    assert count_tokens(corpus, Slow(unk_token="[UNK]"), 4).tolist() == pytest.approx([0, 0.6, 0.2, 0.2])
    with pytest.raises(ValueError, match="Slow does not say where.*expected a fast tokenizer.*Load it with Auto"):
        count_tokens("words:en", Slow(unk_token="[UNK]"), 4)


# Numbers


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.bfloat16, torch.float64])
def test_given_counts_become_shares(dtype: torch.dtype) -> None:
    given = torch.tensor([3, 0, 1, 4], dtype=dtype)
    shares = count_tokens(given, None, 4)
    assert shares.tolist() == [0.375, 0, 0.125, 0.5]
    assert shares.dtype == torch.float64
    assert given.tolist() == [3, 0, 1, 4]
    assert count_tokens(given.tolist(), None, 4).tolist() == shares.tolist()
    if dtype != torch.bfloat16:
        assert count_tokens(given.numpy(), None, 4).tolist() == shares.tolist()


def test_uniform_needs_no_tokenizer() -> None:
    torch.testing.assert_close(count_tokens("uniform", None, 8), torch.full((8,), 1 / 8, dtype=torch.float64))


# Refusals


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


def test_corpora_without_text_or_of_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "notes.md", "text")
    for path in (write(tmp_path / "empty.txt"), write(tmp_path / "blank.txt", " ", "", "\t"), tmp_path / "folder"):
        with pytest.raises(ValueError, match="has no text; expected at least one line.*Check"):
            check_sources(str(path))
    (tmp_path / "latin.txt").write_bytes("déjà vu".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8.*expected plain UTF-8 text.*Save"):
        check_sources(str(tmp_path / "latin.txt"))


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


def test_tokenizers_that_do_not_fit_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    for source in ("tokenizer", "words:en", "dataset:org/name"):
        with pytest.raises(
            ValueError, match=f"'{source}' need a tokenizer.*pass tokenizer=.*or token_counts=\"uniform\""
        ):
            count_tokens(["uniform", source], None, 97)
    with pytest.raises(ValueError, match=r"ids for 97 tokens and the table 96 rows; expected a row for each. Use"):
        count_tokens("tokenizer", tokenizer, 96)
    with pytest.raises(ValueError, match=r"3 token counts for a table of 97 rows; expected one a row. Count again"):
        count_tokens([1, 2, 3], None, 97)


def test_a_tokenizer_that_makes_nothing_of_a_text_is_refused(tmp_path: Path) -> None:
    backend = Tokenizer(models.BPE({"a": 0}, []))  # no token for what it does not know
    with pytest.raises(ValueError, match="the tokenizer makes no token of source.*expected some. Check"):
        count_tokens(write(tmp_path / "z.txt", "zzz"), PreTrainedTokenizerFast(tokenizer_object=backend), 1)


# Descriptions


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
