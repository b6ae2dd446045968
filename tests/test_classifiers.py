"""Classifiers of GLUE tasks: what is learned is scored, whatever the order of labels, dense and compressed alike."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import TINY_MODELS
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from hf_projclust import compress
from hf_projclust.evaluation.classifiers import encode, fine_tune, make_classifier, predict, score_classifier
from hf_projclust.evaluation.glue import Examples

GOOD, BAD = "the good film", "the cat of the films"
TEXTS = Examples([GOOD, BAD] * 8, None, [1, 0] * 8)


@pytest.fixture
def source(tmp_path: Path, tokenizer: Any) -> Path:
    TINY_MODELS["distilbert"].build().distilbert.save_pretrained(tmp_path / "distilbert")
    tokenizer.save_pretrained(tmp_path / "distilbert")
    return tmp_path / "distilbert"


def test_what_is_learned_is_scored_before_and_after_compression(source: Path, tokenizer: Any) -> None:
    model = make_classifier(source, "sst2", seed=1)
    fine_tune(model, tokenizer, TEXTS, num_epochs=20, learning_rate=1e-2, batch_size=8)
    assert score_classifier(model, tokenizer, TEXTS, "sst2") == {"accuracy": 100, "score": 100}
    swapped = Examples(TEXTS.first, None, [0, 1] * 8)
    assert score_classifier(model, tokenizer, swapped, "sst2")["accuracy"] == 0
    nearly = compress(model, rank=model.config.dim - 1, tokenizer=tokenizer, token_counts="uniform")
    assert score_classifier(nearly, tokenizer, TEXTS, "sst2")["accuracy"] == 100


def test_a_number_is_learned_where_the_task_has_no_labels(source: Path, tokenizer: Any) -> None:
    pairs = Examples([GOOD, BAD] * 8, ["film"] * 16, [5.0, 1.0] * 8)
    model = make_classifier(source, "stsb")
    assert model.config.num_labels == 1
    fine_tune(model, tokenizer, pairs, num_epochs=30, learning_rate=1e-2, batch_size=8)
    assert score_classifier(model, tokenizer, pairs, "stsb")["pearson"] > 90


def test_equal_seeds_give_equal_classifiers_and_others_do_not(source: Path, tokenizer: Any) -> None:
    def trained(seed: int) -> torch.Tensor:
        model = make_classifier(source, "rte", seed=seed)
        fine_tune(model, tokenizer, TEXTS, num_epochs=1, batch_size=4, seed=seed)
        return model.classifier.weight

    first, again, other = trained(0), trained(0), trained(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_examples_are_predicted_in_their_order_whatever_the_batches(source: Path, tokenizer: Any) -> None:
    model = make_classifier(source, "rte")
    texts = Examples(["the " * length for length in (9, 1, 30, 4, 2)], ["a film"] * 5, [0] * 5)
    one_by_one = torch.cat(
        [
            predict(model, tokenizer, Examples([first], ["a film"], [0]), batch_size=1, max_length=16)
            for first in texts.first
        ]
    )
    together = predict(model, tokenizer, texts, batch_size=2, max_length=16)
    torch.testing.assert_close(together, one_by_one)
    assert len(together.unique(dim=0)) > 2
    assert [len(feature["input_ids"]) for feature in encode(tokenizer, texts, 16)][2] == 16


def test_labels_in_another_order_are_read_by_their_names(source: Path, tokenizer: Any) -> None:
    model = make_classifier(source, "rte")
    texts = Examples([GOOD, BAD, "a good cat", "film"], ["film"] * 4, [0, 0, 0, 0])
    labels = predict(model, tokenizer, texts, batch_size=4, max_length=16).argmax(dim=1).tolist()
    texts = Examples(texts.first, texts.second, labels)
    assert score_classifier(model, tokenizer, texts, "rte")["accuracy"] == 100
    model.config.id2label = {0: "NOT-ENTAILMENT", 1: "ENTAILMENT"}
    assert score_classifier(model, tokenizer, texts, "rte")["accuracy"] == 0
    model.config.id2label = {0: "not entailment", 1: "entailment"}
    assert score_classifier(model, tokenizer, texts, "rte")["accuracy"] == 0
    for names in (("LABEL_0", "LABEL_1"), ("0", "1"), ("Entailment", "Not-Entailment")):
        model.config.id2label = dict(enumerate(names))
        assert score_classifier(model, tokenizer, texts, "rte")["accuracy"] == 100
    model.config.id2label = {0: "LABEL_1", 1: "LABEL_0"}
    assert score_classifier(model, tokenizer, texts, "rte")["accuracy"] == 0


def test_labels_of_other_names_are_refused_but_not_of_a_number(source: Path, tokenizer: Any) -> None:
    model = make_classifier(source, "rte")
    model.config.id2label = {0: "no", 1: "Yes"}
    with pytest.raises(ValueError, match="its labels no, Yes; expected entailment, not_entailment for the task 'rte'"):
        score_classifier(model, tokenizer, TEXTS, "rte")
    model = make_classifier(source, "stsb")
    model.config.id2label = {0: "similarity"}
    score_classifier(model, tokenizer, TEXTS, "stsb")


def test_a_classifier_is_in_float32_whatever_the_checkpoint_has(source: Path, tokenizer: Any, tmp_path: Path) -> None:
    AutoModel.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    assert AutoModel.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert {tensor.dtype for tensor in make_classifier(tmp_path / "half", "rte").parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_model_that_has_a_head_is_refused(kind: str, num_labels: int, tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=97, dim=8, n_layers=1, n_heads=1, hidden_dim=8, num_labels=num_labels)
    getattr(transformers, f"DistilBertFor{kind}")(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has weights of its own for classifier\.bias, .*Give the model that this"):
        make_classifier(tmp_path, "rte")


def test_layers_of_pretraining_before_the_output_are_no_head(tmp_path: Path) -> None:
    config = ModernBertConfig(
        vocab_size=97, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, pad_token_id=0
    )
    pretrained = ModernBertForMaskedLM(config)
    pretrained.save_pretrained(tmp_path)
    assert torch.equal(make_classifier(tmp_path, "rte").head.dense.weight, pretrained.head.dense.weight)


def test_what_cannot_be_padded_is_refused_with_what_to_set(tokenizer: Any) -> None:
    config = GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    model = GPT2ForSequenceClassification(config)
    with pytest.raises(ValueError, match="GPT2ForSequenceClassification has no pad_token_id .*Set model.config.pad"):
        score_classifier(model, tokenizer, TEXTS, "rte")
    model.config.pad_token_id = tokenizer.pad_token_id
    score_classifier(model, tokenizer, TEXTS, "rte")
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="has no padding token; .*Set tokenizer.pad_token"):
        score_classifier(model, tokenizer, TEXTS, "rte")
    config = BertConfig(vocab_size=97, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.pad_token_id, tokenizer.pad_token = None, "[PAD]"
    score_classifier(BertForSequenceClassification(config), tokenizer, TEXTS, "rte")  # which needs none


def test_a_model_stays_in_the_mode_that_it_was_in(source: Path, tokenizer: Any) -> None:
    model = make_classifier(source, "rte")
    for mode in (True, False):
        model.train(mode)
        predict(model, tokenizer, TEXTS, batch_size=4, max_length=16)
        assert model.training is mode


def test_a_classifier_of_another_number_of_labels_is_refused(tokenizer: Any) -> None:
    config = BertConfig(vocab_size=97, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.num_labels = 3
    with pytest.raises(ValueError, match="the classifier has 3 outputs; expected 2 for the task 'rte'"):
        score_classifier(BertForSequenceClassification(config), tokenizer, TEXTS, "rte")


def test_a_classifier_that_gives_nan_has_no_score(source: Path, tokenizer: Any) -> None:
    model = make_classifier(source, "sst2")
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(ValueError, match="16 of 32 logits of the classifier are NaN or infinite"):
        score_classifier(model, tokenizer, TEXTS, "sst2")
