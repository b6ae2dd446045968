"""Text generation: a compressed model gives the tokens of the dense model that carries its table.

The tiny models have wide weights, so that logits lie far apart and depend on every token before.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, VOCAB_SIZE
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    pipeline,
    set_seed,
)

from hf_projclust import compress, decompress

NEW_TOKENS = 10
DECODER_ONLY = ["gpt2", "llama", "gemma3"]


@dataclass(frozen=True)
class Pair:
    """A compressed model, the dense model of the same table, and prompts for both."""

    compressed: Any
    dense: Any
    prompts: torch.Tensor

    def generate(self, **options: Any) -> tuple[Any, Any]:
        """What both give, from one seed."""
        return run(self.compressed, self.prompts, **options), run(self.dense, self.prompts, **options)


def run(model: Any, prompts: torch.Tensor, **options: Any) -> Any:
    set_seed(7)
    defaults = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(prompts, **(defaults | options))


def make_pair(name: str) -> Pair:
    tiny = TINY_MODELS[name]
    model = tiny.build(seed=3)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter is not table:
                parameter.normal_()
    compressed = compress(model, num_clusters=3, compression=0.3, token_counts="uniform")
    return Pair(compressed, decompress(compressed), tiny.inputs()["input_ids"][:4, :6])


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    """A pair of each kind: tied and untied, decoder alone and with encoder, with and without a scale."""
    return {name: make_pair(name) for name in ("gpt2", "llama", "t5", "bart", "gemma3")}


@pytest.fixture(params=["gpt2", "llama", "t5", "bart", "gemma3"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


@pytest.fixture(params=DECODER_ONLY)
def decoder(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


def test_greedy_tokens_are_those_of_the_dense_model_and_no_near_tie_decides(pair: Pair) -> None:
    given, expected = pair.generate(return_dict_in_generate=True, output_logits=True, output_scores=True)
    assert torch.equal(given.sequences, expected.sequences)
    assert len(expected.sequences[:, -NEW_TOKENS:].unique()) > 3  # the models do not repeat one token
    torch.testing.assert_close(torch.stack(given.logits), torch.stack(expected.logits), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(torch.stack(given.scores), torch.stack(expected.scores), atol=1e-3, rtol=1e-4)
    best = torch.stack(expected.logits).topk(2, dim=-1).values
    assert (best[..., 0] - best[..., 1]).min() > 5e-3


WAYS = {
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 3, "top_k": 20, "temperature": 5.0},
    "sampling among beams": {"do_sample": True, "num_beams": 2, "temperature": 5.0},
    "a static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "forbidden words": {"bad_words_ids": [[VOCAB_SIZE - 1], [5], [7, 9]], "suppress_tokens": [11, 13]},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
def test_every_way_of_decoding_gives_the_tokens_of_the_dense_model(pair: Pair, options: dict) -> None:
    given, expected = pair.generate(**options)
    assert torch.equal(given, expected)
    assert len(expected) == len(pair.prompts) * options.get("num_return_sequences", 1)


def test_another_seed_samples_other_tokens(pairs: dict[str, Pair]) -> None:
    pair = pairs["gpt2"]
    first = run(pair.compressed, pair.prompts, do_sample=True, temperature=5.0)
    set_seed(8)
    second = pair.compressed.generate(
        pair.prompts, do_sample=True, temperature=5.0, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=None
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize("assistant", ["compressed", "dense", "another compressed"])
def test_assisted_decoding_gives_the_same_tokens(pair: Pair, assistant: str, pairs: dict[str, Pair]) -> None:
    one_prompt = pair.prompts[:1]
    helper = {"compressed": pair.compressed, "dense": pair.dense, "another compressed": pairs["gpt2"].compressed}
    if pair.compressed.config.is_encoder_decoder and assistant == "another compressed":
        helper[assistant] = pairs["t5"].compressed
    expected = run(pair.dense, one_prompt)
    assert torch.equal(run(pair.compressed, one_prompt, assistant_model=helper[assistant]), expected)
    if assistant == "compressed":
        assert torch.equal(run(pair.dense, one_prompt, assistant_model=pair.compressed), expected)


def test_drafts_from_the_prompt_give_the_same_tokens(decoder: Pair) -> None:
    one_prompt = decoder.prompts[:1].repeat(1, 2)
    drafted = run(decoder.compressed, one_prompt, prompt_lookup_num_tokens=3)
    assert torch.equal(drafted, run(decoder.dense, one_prompt))


def test_prompts_of_unequal_length_padded_on_the_left_give_what_each_gives_alone(decoder: Pair) -> None:
    mask = torch.ones_like(decoder.prompts)
    for row in range(len(mask)):
        mask[row, :row] = 0
    padded = torch.where(mask.bool(), decoder.prompts, 0)
    given = run(decoder.compressed, padded, attention_mask=mask)
    assert torch.equal(given, run(decoder.dense, padded, attention_mask=mask))
    for row in range(len(mask)):
        alone = run(decoder.compressed, decoder.prompts[row : row + 1, row:])
        assert torch.equal(given[row, row:], alone[0])


def test_vectors_in_place_of_token_ids_give_the_same_tokens(decoder: Pair) -> None:
    vectors = decoder.compressed.get_input_embeddings()(decoder.prompts)
    options = {"inputs_embeds": vectors, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0, "eos_token_id": None}
    given = decoder.compressed.generate(**options, do_sample=False)
    assert torch.equal(given, run(decoder.dense, decoder.prompts)[:, decoder.prompts.shape[1] :])


def test_a_streamer_receives_the_text_as_it_is_made(pairs: dict[str, Pair], tokenizer: PreTrainedTokenizerFast) -> None:
    pair = pairs["gpt2"]
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    tokens = run(pair.compressed, pair.prompts[:1], streamer=streamer)[0, pair.prompts.shape[1] :]
    pieces = list(streamer)
    assert len(pieces) > NEW_TOKENS // 2
    assert "".join(pieces) == tokenizer.decode(tokens)


def test_a_pipeline_on_the_saved_folder_writes_what_the_dense_folder_writes(
    pairs: dict[str, Pair], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = {}
    for kind in ("compressed", "dense"):
        getattr(pairs["llama"], kind).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        writer = pipeline("text-generation", model=str(tmp_path / kind), device="cpu")
        prompts = ["good film", "w60 bad w33 film"]
        texts[kind] = writer(prompts, max_new_tokens=NEW_TOKENS, do_sample=False, batch_size=2)
    assert texts["compressed"] == texts["dense"]
    [[answer], _] = texts["compressed"]
    assert len(answer["generated_text"].split()) > 4


def test_saved_settings_of_generation_hold_after_a_reload(pairs: dict[str, Pair], tmp_path: Path) -> None:
    model = compress(pairs["gpt2"].dense, num_clusters=3, compression=0.3, token_counts="uniform")
    model.generation_config.update(max_new_tokens=3, suppress_tokens=[4, 5], pad_token_id=0, eos_token_id=None)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompts = pairs["gpt2"].prompts
    assert reloaded.generate(prompts).shape == (len(prompts), prompts.shape[1] + 3)
    assert torch.equal(reloaded.generate(prompts), model.generate(prompts))
