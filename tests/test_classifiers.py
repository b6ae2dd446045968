"""Classifiers of GLUE tasks: what is learned is scored, whatever the order of labels, dense and compressed alike."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS
from transformers import BertConfig, BertForSequenceClassification

from hf_projclust import compress
from hf_projclust.evaluation.classifiers import encode, fine_tune, make_classifier, predict, score_classifier
from hf_projclust.evaluation.glue import Examples

GOOD, BAD = "the good film", "the cat of the films"
TEXTS = Examples([GOOD, BAD] * 8, None, [1, 0] * 8)


@pytest.fixture
def tokenizer(tokenizer: Any) -> Any:
    return copy.deepcopy(tokenizer)  # to which the truncation sticks


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
        [predict(model, tokenizer, texts.head(number + 1), batch_size=1, max_length=16)[-1:] for number in range(5)]
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
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    assert score_classifier(model, tokenizer, texts, "rte")["accuracy"] == 100


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
