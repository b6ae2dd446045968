"""Correlation of embeddings with people's scores, and where the embeddings come from."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, run_cli
from scipy.stats import spearmanr
from transformers import AutoModelForTextEncoding, T5EncoderModel

from hf_projclust.evaluation.fidelity import embed_sentences
from hf_projclust.evaluation.similarity import is_sentence_transformer, sentence_transformer, spearman
from hf_projclust.evaluation.texts import ScoredPairs

ANGLES = {"a": 0.0, "b": 0.1, "c": 0.5, "d": 1.2, "e": 1.4}


def embed(sentences: Any) -> torch.Tensor:
    angles = torch.tensor([ANGLES[sentence] for sentence in sentences])
    return 3 * torch.stack([angles.cos(), angles.sin()], dim=1)  # (n, 2)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([5, 4, 2, 1], 100.0),
        ([1, 2, 4, 5], -100.0),
        ([4, 5, 2, 1], 80.0),  # 1 - 6 * (1 + 1) / (4 * 15)
        ([5, 5, 2, 1], 100 * spearmanr([4, 3, 2, 1], [5, 5, 2, 1]).statistic),
    ],
)
def test_known_pairs_have_the_correlation_of_their_ranks(scores: list[float], expected: float) -> None:
    pairs = ScoredPairs("", ["a", "a", "a", "a"], ["b", "c", "d", "e"], scores)
    assert spearman(embed, pairs) == pytest.approx(expected)


def test_embeddings_that_are_all_alike_have_no_correlation() -> None:
    assert (
        spearman(lambda sentences: torch.ones(len(sentences), 3), ScoredPairs("", ["a", "b"], ["c", "d"], [1, 2])) == 0
    )


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_means_of_batches_are_those_of_single_sentences(name: str, tokenizer: Any) -> None:
    model = TINY_MODELS[name].build()
    sentences = ["good film", "w1 w2 w3", "bad w1", "w9"]
    found = embed_sentences(model, tokenizer, sentences, batch_size=3)
    torch.testing.assert_close(found, embed_sentences(model, tokenizer, sentences))


def test_a_sentence_without_tokens_is_refused(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="a sentence has no tokens"):
        embed_sentences(TINY_MODELS["bert"].build(), tokenizer, ["good", " "])


def test_a_folder_of_sentence_transformers_has_its_own_pooling(tmp_path: Path, tokenizer: Any) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tiny = TINY_MODELS["bert"].build().bert
    tiny.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    assert not is_sentence_transformer(tmp_path / "plain")
    body = Transformer(str(tmp_path / "plain"))
    SentenceTransformer(modules=[body, Pooling(16, pooling_mode="cls")], device="cpu").save(str(tmp_path / "cls"))
    run_cli("compress", tmp_path / "cls", "--rank", 4, "--output", tmp_path / "out")
    for folder in ("cls", "out"):
        assert is_sentence_transformer(tmp_path / folder)
    for folder, same in (("cls", True), ("out", False)):
        found = sentence_transformer(tmp_path / folder)(["good film", "bad"])
        with torch.no_grad():
            ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in ("good film", "bad")]
            first = torch.cat([tiny(each).last_hidden_state[:, 0] for each in ids])
        assert torch.allclose(found, first, atol=1e-5) == same


def test_a_folder_of_two_parts_is_read_with_its_factors(tmp_path: Path, tokenizer: Any) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    torch.manual_seed(0)
    T5EncoderModel(copy.deepcopy(TINY_MODELS["t5"].config)).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    modules = [Transformer(str(tmp_path / "plain")), Pooling(16), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "dense"))
    run_cli("compress", tmp_path / "dense", "--rank", 4, "--output", tmp_path / "out")
    sentences = ["good film w8", "w5 w6"]
    body = AutoModelForTextEncoding.from_pretrained(tmp_path / "out").eval()
    expected = torch.nn.functional.normalize(embed_sentences(body, copy.deepcopy(tokenizer), sentences), dim=-1)
    torch.testing.assert_close(sentence_transformer(tmp_path / "out")(sentences), expected, atol=1e-5, rtol=0)


def test_cross_encoders_embed_no_sentences(tmp_path: Path, tokenizer: Any) -> None:
    from sentence_transformers import CrossEncoder

    TINY_MODELS["distilbert"].build().save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    CrossEncoder(str(tmp_path / "plain"), device="cpu").save_pretrained(str(tmp_path / "cross"))
    assert (tmp_path / "cross/modules.json").is_file()
    assert not is_sentence_transformer(tmp_path / "cross")


def test_embeddings_that_are_not_finite_are_refused() -> None:
    pairs = ScoredPairs("", ["a", "a"], ["b", "c"], [1, 2])
    with pytest.raises(ValueError, match="numbers in embeddings of the dense model are NaN or infinite"):
        spearman(lambda sentences: embed(sentences) / 0, pairs, of="the dense model")
