"""Tiny real tokenizers of every kind, with special tokens around each text, and what reads their token counts."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_python import PythonBackend

from hf_projclust.token_counts.running_text import MARKS

TEXTS = [
    "the good film, and the bad film.",
    "The cat (in 2019) saw the dog: it was good!",
    'don\'t the films of 1984 say "good"?',
    "the end of the film - and of the story; then more of the same",
]
PUNCTUATION = list(MARKS)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wrap(backend: Tokenizer, max_length: int = 4) -> PreTrainedTokenizerFast:
    """Special tokens around every text, and a length that most texts of the tests of token counts exceed."""
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
        model_max_length=max_length,
    )


def build_word_level(num_tokens: int) -> PreTrainedTokenizerFast:
    words = [*SPECIAL, "good", "bad", "film"]
    words += [f"w{number}" for number in range(num_tokens - len(words))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrap(backend, max_length=32)


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


def share_of(shares: torch.Tensor, tokenizer: PreTrainedTokenizerBase, token: str) -> float:
    return float(shares[tokenizer.get_vocab()[token]])
