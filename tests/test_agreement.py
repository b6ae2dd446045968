"""Hidden states and predictions of two models, against a slow reference; and the batches that they come in."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COMPRESSED, TINY_MODELS, VOCAB_SIZE
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertLMHeadModel

from hf_projclust import compress
from hf_projclust.evaluation import agreement, batches
from hf_projclust.evaluation.agreement import compare_predictions, compare_states
from hf_projclust.evaluation.batches import (
    batches_of_one_length,
    is_causal,
    language_model_kind,
    longest,
    tokens_of,
)
from hf_projclust.evaluation.masking import mask_texts
from hf_projclust.outputs import last_states

LANGUAGE_MODELS = {"bert": "masked", "gpt2": "causal", "llama": "causal", "t5": "encoder-decoder"}
LANGUAGE_MODELS |= {"bart": "encoder-decoder", "gemma3": "causal"}


@pytest.fixture
def texts() -> list[torch.Tensor]:
    """Five texts of 3 to 9 tokens, two of one length; ids from 5 on are of no special tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, VOCAB_SIZE, (length,), generator=generator) for length in (9, 3, 7, 7, 4)]


@torch.no_grad()
def reference_logits(model: Any, ids: torch.Tensor) -> np.ndarray:
    inputs = {"input_ids": ids[None]}
    if model.config.is_encoder_decoder:
        start = torch.tensor([model.config.decoder_start_token_id])
        inputs["decoder_input_ids"] = torch.cat([start, ids[:-1]])[None]
    return model(**inputs).logits[0].double().numpy()


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "distilbert", "roberta"])
def test_states_equal_a_slow_reference(name: str, batch_size: int, texts: list[torch.Tensor]) -> None:
    model = TINY_MODELS[name].build()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # with fresh norms all states are of one length
            torch.nn.init.normal_(parameter)
    models = model, compress(model, **(COMPRESSED | {"compression": 0.6}))
    cosines, distance, norm = [], 0.0, 0.0
    for ids in texts:
        with torch.no_grad():
            bodies = [model.encoder if name == "t5" else model.base_model for model in models]
            dense, found = (body(ids[None]).last_hidden_state[0].double().numpy() for body in bodies)
        one, other = dense.mean(axis=0), found.mean(axis=0)
        cosines.append(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        distance, norm = distance + ((dense - found) ** 2).sum(), norm + (dense**2).sum()
    result = compare_states(*models, texts, batch_size=batch_size)
    assert result["mean_cosine"] == pytest.approx(np.mean(cosines), abs=1e-6)
    assert result["hidden_error"] == pytest.approx(distance / norm, rel=1e-4)
    assert result["hidden_error"] > 0.01


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_predictions_equal_a_slow_reference(
    name: str, batch_size: int, texts: list[torch.Tensor], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "_MOST_NUMBERS", 3 * VOCAB_SIZE)  # slices of three places
    models = TINY_MODELS[name].build(), TINY_MODELS[name].compressed(compression=0.6)
    assert [language_model_kind(model) for model in models] == [LANGUAGE_MODELS[name]] * 2
    chosen = [(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in texts]
    if name == "bert":
        chosen = [(text.ids, text.is_masked) for text in mask_texts(texts, tokenizer, 3)]
    divergences, agreed = [], []
    for ids, places in chosen:
        logits, others = (reference_logits(model, ids)[places.numpy()] for model in models)
        p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (logits, others))
        divergences += list((p * np.log(p / q)).sum(axis=1))
        agreed += list(p.argmax(axis=1) == q.argmax(axis=1))
    assert len(agreed) == (5 if name == "bert" else 30)
    result = compare_predictions(*models, texts, tokenizer=tokenizer, batch_size=batch_size, seed=3)
    assert result["kl"] == pytest.approx(np.mean(divergences), rel=1e-4)
    assert result["kl"] > 1e-3
    assert result["top1_agreement"] == pytest.approx(100 * np.mean(agreed))


def test_a_model_agrees_with_itself(tiny: Any, texts: list[torch.Tensor], tokenizer: Any) -> None:
    model = tiny.build()
    states = compare_states(model, model, texts, batch_size=2)
    assert states["mean_cosine"] == pytest.approx(1, abs=1e-6)
    assert states["hidden_error"] == 0
    if language_model_kind(model) is not None:
        predictions = compare_predictions(model, model, texts, tokenizer=tokenizer, batch_size=2, seed=0)
        assert predictions == {"kl": pytest.approx(0, abs=1e-12), "top1_agreement": 100}


def test_models_without_a_language_model_head_are_told() -> None:
    assert [language_model_kind(TINY_MODELS[name].build()) for name in ("distilbert", "roberta")] == [None, None]


@given(
    lengths=st.lists(st.integers(1, 6), max_size=30), batch_size=st.integers(1, 9), numbers=st.integers(1, 2**26 + 1)
)
def test_every_text_is_in_one_batch_of_its_length_within_the_bounds(
    lengths: list[int], batch_size: int, numbers: int
) -> None:
    found = list(batches_of_one_length(lengths, batch_size, numbers))
    assert sorted(number for batch in found for number in batch) == list(range(len(lengths)))
    for batch in found:
        (length,) = {lengths[number] for number in batch}
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * length * numbers <= batches._MOST_NUMBERS


@pytest.mark.parametrize(
    ("max_length", "of_the_tokenizer", "expected"),
    [(512, 32, 32), (512, int(1e30), 40), (7, 32, 7)],  # 40 positions
)
def test_the_least_limit_of_length_holds(max_length: int, of_the_tokenizer: int, expected: int, tokenizer: Any) -> None:
    model = TINY_MODELS["gpt2"].build()
    tokenizer.model_max_length = of_the_tokenizer
    assert longest(tokenizer, model, max_length) == expected
    long, short = tokens_of(tokenizer, ["good " * 60, "bad"], model, max_length)
    assert (len(long), len(short)) == (expected, 3)


def test_a_decoder_that_no_token_begins_is_refused(texts: list[torch.Tensor], tokenizer: Any) -> None:
    model = TINY_MODELS["t5"].build()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="names neither decoder_start_token_id nor bos_token_id"):
        compare_predictions(model, model, texts, tokenizer=tokenizer, batch_size=1, seed=0)


@pytest.mark.parametrize("which", ["dense", "compressed"])
def test_numbers_that_are_not_finite_are_refused_and_say_whose_they_are(
    which: str, texts: list[torch.Tensor], tokenizer: Any
) -> None:
    models = {"dense": TINY_MODELS["gpt2"].build(), "compressed": TINY_MODELS["gpt2"].compressed()}
    with torch.no_grad():
        models[which].transformer.ln_f.bias[0] = float("nan")
    expected = f"of the {which} model are NaN or infinite; expected finite numbers"
    with pytest.raises(ValueError, match=f"hidden states {expected}"):
        compare_states(*models.values(), texts, batch_size=2)
    with pytest.raises(ValueError, match=f"logits {expected}"):
        compare_predictions(*models.values(), texts, tokenizer=tokenizer, batch_size=2, seed=0)


def test_states_that_are_all_zero_have_no_error(texts: list[torch.Tensor]) -> None:
    model = TINY_MODELS["bert"].build()
    torch.nn.init.zeros_(model.bert.encoder.layer[0].output.LayerNorm.weight)
    assert compare_states(model, model, texts, batch_size=2) == {"mean_cosine": 0, "hidden_error": 0}


def test_limits_of_positions_are_those_that_the_model_has(tokenizer: Any) -> None:
    tokenizer.model_max_length = int(1e30)
    roberta = TINY_MODELS["roberta"].build()
    assert longest(tokenizer, roberta, 512) == 38  # 40 positions, of which padding and what is before it are none
    (ids,) = tokens_of(tokenizer, ["good " * 60], roberta)
    assert last_states(roberta, ids[None]).shape[1] == 38
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        last_states(roberta, torch.cat([ids, ids[-1:]])[None])
    endless = TINY_MODELS["gpt2"].build()
    endless.config.max_position_embeddings = -1
    assert longest(tokenizer, endless, 512) == 512


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_models_are_found_to_be_causal(name: str, dtype: torch.dtype, texts: list[torch.Tensor]) -> None:
    assert is_causal(TINY_MODELS[name].build().to(dtype), texts)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_class_for_causal_models_may_be_bidirectional(is_decoder: bool, texts: list[torch.Tensor]) -> None:
    config = copy.deepcopy(TINY_MODELS["bert"].config)
    config.is_decoder = is_decoder
    torch.manual_seed(0)
    model = BertLMHeadModel(config).eval()
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    assert language_model_kind(model) == "causal"
    assert is_causal(model, texts) == is_decoder
