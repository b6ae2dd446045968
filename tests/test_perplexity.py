"""Perplexity: of a model that knows nothing, and against a slow reference, token by token."""

import math
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, VOCAB_SIZE

from hf_projclust.evaluation import perplexity
from hf_projclust.evaluation.masking import mask_texts
from hf_projclust.evaluation.perplexity import causal_perplexity, masked_perplexity

LINES = ["good film w1 w2 w3", "bad w9", "w7 w7 w8 w5 good bad w4 w30 w31 w40 w77 w5 w6"]


def test_a_causal_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(tokenizer: Any) -> None:
    model = TINY_MODELS["gpt2"].build()
    torch.nn.init.zeros_(model.get_input_embeddings().weight)  # and with it the tied head
    assert causal_perplexity(model, tokenizer, LINES, max_length=8) == pytest.approx(VOCAB_SIZE, rel=1e-6)


def test_a_masked_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(tokenizer: Any) -> None:
    model = TINY_MODELS["bert"].build()
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    texts = [torch.arange(5, 30), torch.arange(9, 12)]
    found = masked_perplexity(model, texts, tokenizer=tokenizer, batch_size=4, seed=0)
    assert found == pytest.approx(VOCAB_SIZE, rel=1e-6)


@pytest.mark.parametrize("window", [2, 5, 8, 13, 14, 21, 22, 23, 40])
def test_each_token_counts_once_after_the_window_before_it(
    window: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "_MOST_NUMBERS", 2 * VOCAB_SIZE)  # slices of two tokens
    tokenizer.model_max_length = 1000
    model = TINY_MODELS["gpt2"].build()
    ids = torch.tensor(tokenizer("\n".join(LINES))["input_ids"])
    assert len(ids) == 22
    total, stride = 0.0, window // 2
    for place in range(1, len(ids)):
        end = window
        while end <= place:
            end += stride
        begin = max(0, min(end, len(ids)) - window)
        with torch.no_grad():
            logits = model(ids[None, begin:place]).logits[0, -1].double()
        total -= float(logits.log_softmax(dim=0)[ids[place]])
    assert causal_perplexity(model, tokenizer, LINES, max_length=window) == pytest.approx(
        math.exp(total / (len(ids) - 1)), rel=1e-5
    )


def test_a_text_within_one_window_has_the_loss_that_transformers_gives(tokenizer: Any) -> None:
    model = TINY_MODELS["llama"].build()
    ids = torch.tensor([tokenizer("\n".join(LINES))["input_ids"]])
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert causal_perplexity(model, tokenizer, LINES) == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_hidden_tokens_have_the_loss_that_transformers_gives(batch_size: int, tokenizer: Any) -> None:
    model = TINY_MODELS["bert"].build()
    texts = [torch.arange(5, 25), torch.arange(30, 50), torch.arange(60, 63)]
    total, count = 0.0, 0
    for text in mask_texts(texts, tokenizer, 5):
        labels = text.targets.masked_fill(~text.is_masked, -100)
        with torch.no_grad():
            number = int(text.is_masked.sum())
            total, count = total + number * float(model(text.ids[None], labels=labels[None]).loss), count + number
    assert count == 7
    found = masked_perplexity(model, texts, tokenizer=tokenizer, batch_size=batch_size, seed=5)
    assert found == pytest.approx(math.exp(total / count), rel=1e-5)


def test_a_text_of_one_token_is_refused(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(ValueError, match="a text of 1 tokens"):
        causal_perplexity(TINY_MODELS["gpt2"].build(), tokenizer, ["good"])


@pytest.mark.parametrize("make", ["build", "compressed"])
def test_logits_that_are_not_finite_are_refused(make: str, tokenizer: Any) -> None:
    causal, masked = (getattr(TINY_MODELS[name], make)() for name in ("gpt2", "bert"))
    with torch.no_grad():
        causal.transformer.ln_f.bias[0] = masked.cls.predictions.bias[0] = float("nan")
    message = f"logits of the {'dense' if make == 'build' else 'compressed'} model are NaN or infinite"
    with pytest.raises(ValueError, match=message):
        causal_perplexity(causal, tokenizer, LINES)
    with pytest.raises(ValueError, match=message):
        masked_perplexity(masked, [torch.arange(5, 30)], tokenizer=tokenizer, batch_size=1, seed=0)


def test_a_perplexity_that_no_float_holds_is_refused(tokenizer: Any) -> None:
    model = TINY_MODELS["gpt2"].build()
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(1e4)
    with pytest.raises(ValueError, match="nats a token, whose exponential no float holds"):
        causal_perplexity(model, tokenizer, LINES)
