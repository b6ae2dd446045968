"""Tokens expected of word frequencies: against a slow reference, for real word lists, with marks and capitals."""

from typing import Any

import pytest
import torch
import wordfreq
from tiny_tokenizers import PUNCTUATION, SPECIAL, build_bpe, build_unigram, share_of, wrap
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_projclust.token_counts import count_tokens
from hf_projclust.token_counts.running_text import CAPITALISED_SHARE, MARKS
from hf_projclust.token_counts.words import word_frequencies


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
