"""Sources summed by their weights, prompts in front of their texts, and tokenizers that do not fit."""

from pathlib import Path

import pytest
import torch
from conftest import write_lines
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_projclust.token_counts import count_tokens


def test_weights_are_those_of_sources_whatever_their_length(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    long = write_lines(tmp_path / "long.txt", *["good film"] * 2500)
    short = write_lines(tmp_path / "short.txt", "bad bad")
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


def test_uniform_needs_no_tokenizer() -> None:
    torch.testing.assert_close(count_tokens("uniform", None, 8), torch.full((8,), 1 / 8, dtype=torch.float64))


def test_a_prompt_stands_once_in_every_text(tmp_path: Path, any_tokenizer: PreTrainedTokenizerFast) -> None:
    """That is what counting the texts with the prompt in front of them gives, where words do not change by it."""
    size, texts = len(any_tokenizer), ["the film", "good of the film", "film"]
    prompt = "film:" if "Ġ" in any_tokenizer.get_vocab() else "film: "  # or the first word would get a space
    plain = write_lines(tmp_path / "plain.txt", *texts)
    prompted = write_lines(tmp_path / "prompted.txt", *(prompt + text for text in texts))
    shares = count_tokens([plain, f"prompt:{prompt}"], any_tokenizer, size)
    torch.testing.assert_close(shares, count_tokens(prompted, any_tokenizer, size))
    spaced = count_tokens([plain, "prompt:film:  "], any_tokenizer, size)
    torch.testing.assert_close(spaced, shares)  # a space before a word is the word's


def test_the_weight_of_a_prompt_is_how_often_it_stands_in_a_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    corpus = write_lines(tmp_path / "corpus.txt", "good good", "film")  # 7 tokens in 2 texts
    for weight in (0.5, 1, 3):
        shares = count_tokens([f"{weight}*prompt:bad w1 bad", corpus], tokenizer, 97)
        total = 7 + weight * 2 * 3
        assert shares[[2, 5, 6, 9]].tolist() == pytest.approx([x / total for x in (2, 2, weight * 4, weight * 2)])
    plain, heavy = (count_tokens([f"{weight}*{corpus}", "prompt:bad"], tokenizer, 97) for weight in (1, 5))
    torch.testing.assert_close(plain, heavy)
    uniform = count_tokens(["uniform", "prompt:2*w3"], tokenizer, 97)  # 2, * and w3; a text of 20 tokens
    assert uniform[11] == pytest.approx((1 / 97 + 1 / 20) / (1 + 3 / 20))


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
        count_tokens(write_lines(tmp_path / "z.txt", "zzz"), PreTrainedTokenizerFast(tokenizer_object=backend), 1)
