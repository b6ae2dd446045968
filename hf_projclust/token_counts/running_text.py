"""What is known of running text before any is read: how often each mark stands in it, and how long a text is.

This file holds figures and the one type that every way of counting returns. It counts nothing itself.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MEAN_WORDS_PER_TEXT = 20  # a sentence or two; a text of a corpus is as long as it is

# Marks in 1,000 words of English, from Vivian Cook, "Standard punctuation and frequencies". Brackets and symbols are
# not in that table: 3 and 0.3 are guesses of our own, so that a mark that is rare is not taken for one never used.
_ENGLISH = {",": 61.6, ".": 65.3, "?": 5.6, "!": 3.3, ":": 3.4, ";": 3.2, "'": 24.3, '"': 26.7, "-": 15.3}
_SYMBOLS = {"(": 3.0, ")": 3.0} | dict.fromkeys("#$%&*+/<=>@[\\]^_`{|}~", 0.3)
MARKS = _ENGLISH | _SYMBOLS
# The same rates in full width; the two commas and the two kinds of quotation marks share those of English.
FULL_WIDTH_MARKS = {
    **dict.fromkeys("，、", 61.6 / 2),
    **{"。": 65.3, "？": 5.6, "！": 3.3, "：": 3.4, "；": 3.2, "（": 3.0, "）": 3.0},
    **dict.fromkeys("“”「」", 26.7 / 4),
    **dict.fromkeys(_ENGLISH.keys() | _SYMBOLS.keys(), 0.3),
}
OPENING_MARKS = frozenset("([{（“「")  # which stand before a word, after a space
CAPITALISED_SHARE = (MARKS["."] + MARKS["?"] + MARKS["!"]) / 1000  # words that follow the end of a sentence


class TokenUse(NamedTuple):
    """Tokens that were counted, or expected, in some amount of text.

    Attributes:
        counts: How often each token stands in it, shape (vocab_size,), float64.
        texts: How many texts it is.
    """

    counts: Tensor
    texts: float
