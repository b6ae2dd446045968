"""Shares guessed from a tokenizer alone: from scores, from an order, for every kind of tokenizer."""

import math
from pathlib import Path

import pytest
from conftest import write_lines
from tiny_tokenizers import SPECIAL, Slow, build_bpe, build_unigram, share_of, wrap
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_projclust.token_counts import count_tokens
from hf_projclust.token_counts.from_tokenizer import count_from_tokenizer


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
    corpus = write_lines(tmp_path / "corpus.txt", "the film", "of the the")
    assert count_tokens(corpus, Slow(unk_token="[UNK]"), 4).tolist() == pytest.approx([0, 0.6, 0.2, 0.2])
    with pytest.raises(ValueError, match="Slow does not say where.*expected a fast tokenizer.*Load it with Auto"):
        count_tokens("words:en", Slow(unk_token="[UNK]"), 4)
