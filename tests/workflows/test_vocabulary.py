"""Changing the vocabulary of a compressed model: more tokens, fewer, padded, and training on the new ones."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPRESSED, SMALL_PAIR_SIZES, TINY_MODELS, VOCAB_SIZE, Tiny, build_llava, equal_state_dicts
from transformers import (
    AutoModel,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_projclust import compress, decompress
from hf_projclust.table_projclust import FactoredTable

pytestmark = pytest.mark.filterwarnings("ignore:The new embeddings will be initialized")


def resized_alike(model: Any, size: int | None, **options: Any) -> tuple[Any, Any]:
    """The model and the dense one that it stands for, both resized from one seed."""
    dense = decompress(model)
    for each in (model, dense):
        set_seed(3)
        each.resize_token_embeddings(size, **options)
    return model, dense


def assert_equal_tables(model: Any, dense: Any) -> None:
    for name, module in dense.named_modules():
        weight = getattr(model.get_submodule(name), "weight", None)
        if isinstance(model.get_submodule(name), FactoredTable):
            torch.testing.assert_close(weight + 0, module.weight.data, atol=1e-5, rtol=0)
            if getattr(module, "bias", None) is not None:
                assert torch.equal(model.get_submodule(name).bias, module.bias)


@torch.no_grad()
@pytest.mark.parametrize("mean_resizing", [True, False])
@pytest.mark.parametrize("size", [VOCAB_SIZE + 7, VOCAB_SIZE - 40, 1])
def test_a_resized_model_equals_the_dense_one_resized(tiny: Tiny, size: int, mean_resizing: bool) -> None:
    model, dense = resized_alike(tiny.compressed(), size, mean_resizing=mean_resizing)
    assert model.get_input_embeddings().num_embeddings == model.config.get_text_config().vocab_size == size
    assert_equal_tables(model, dense)
    inputs = {name: ids % size for name, ids in tiny.inputs().items()} | {"attention_mask": torch.ones(8, 12).long()}
    inputs["input_ids"][0, 0] = size - 1
    for one, other in zip(model(**inputs).to_tuple(), dense(**inputs).to_tuple(), strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", [False, True], ids=["dense head", "factored head"])
def test_an_untied_head_follows(head: bool) -> None:
    for size in (VOCAB_SIZE + 7, VOCAB_SIZE - 40):
        model, dense = resized_alike(TINY_MODELS["llama"].compressed(head=head), size)
        torch.testing.assert_close(model.lm_head.weight + 0, dense.lm_head.weight.data, atol=1e-5, rtol=0)
        assert model.lm_head.out_features == size


@torch.no_grad()
@pytest.mark.parametrize("head", [False, True], ids=["table", "head"])
def test_a_bias_follows_and_what_was_frozen_stays_so(head: bool) -> None:
    """A tied head of BERT with a bias, and an untied one that is frozen, with the head alone factored."""
    dense = TINY_MODELS["llama" if head else "bert"].build()
    if head:
        dense.lm_head.requires_grad_(False)
        model = compress(dense, num_clusters=3, compression=0.4, token_counts="uniform", embedding=False, head=True)
    else:
        torch.nn.init.normal_(dense.cls.predictions.decoder.bias)
        model = compress(dense, num_clusters=3, compression=0.4, token_counts="uniform")
    for size in (VOCAB_SIZE + 7, VOCAB_SIZE - 40):
        model, back = resized_alike(model, size)
        output = model.get_output_embeddings()
        torch.testing.assert_close(output.weight + 0, back.get_output_embeddings().weight, atol=1e-5, rtol=0)
        assert output.weight.requires_grad is not head
        if not head:
            assert torch.equal(output.bias, back.get_output_embeddings().bias)
            assert model.cls.predictions.bias is output.bias


@pytest.mark.parametrize("embedding", [True, False], ids=["both", "head alone"])
def test_a_body_without_the_head_of_its_file_is_resized(embedding: bool, tmp_path: Path) -> None:
    llama = TINY_MODELS["llama"].build()
    options = {"num_clusters": 3, "compression": 0.4, "token_counts": "uniform", "embedding": embedding, "head": True}
    compress(llama, **options).save_pretrained(tmp_path / "whole")
    body = AutoModel.from_pretrained(tmp_path / "whole")
    body.resize_token_embeddings(VOCAB_SIZE + 7)
    assert body(input_ids=torch.tensor([[VOCAB_SIZE + 6]])).last_hidden_state.isfinite().all()
    if embedding:
        body.save_pretrained(tmp_path / "body")
        assert equal_state_dicts(body, AutoModel.from_pretrained(tmp_path / "body"))


def test_new_rows_are_exact_and_in_one_cluster_however_often_tokens_are_added(tiny: Tiny) -> None:
    model = tiny.compressed()
    clusters = model.get_input_embeddings().layout.num_clusters
    for size in (VOCAB_SIZE + 3, VOCAB_SIZE + 8):
        _, dense = resized_alike(model, size)
        assert torch.equal(
            model.get_input_embeddings().weight[VOCAB_SIZE:], dense.get_input_embeddings().weight[VOCAB_SIZE:]
        )
    layout = model.get_input_embeddings().layout
    assert (layout.num_clusters, layout.cluster_sizes[-1], layout.cluster_ranks[-1]) == (clusters + 1, 8, layout.dim)


def test_tokens_that_are_added_and_taken_away_leave_the_factors_as_they_were(tiny: Tiny) -> None:
    model, before = tiny.compressed(), tiny.compressed()
    model.resize_token_embeddings(VOCAB_SIZE + 3)
    model.resize_token_embeddings(VOCAB_SIZE)
    embedding, old = model.get_input_embeddings(), before.get_input_embeddings()
    assert torch.equal(embedding.coefficients, old.coefficients)
    assert torch.equal(embedding.rows, old.rows)
    assert torch.equal(embedding.bases, old.bases)


def test_the_present_size_changes_nothing_and_gives_the_embedding(tiny: Tiny) -> None:
    model = tiny.compressed()
    parameters = dict(model.named_parameters())
    for given in (VOCAB_SIZE, None):
        assert model.resize_token_embeddings(given) is model.get_input_embeddings()
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_padding_to_a_multiple_rounds_up() -> None:
    model = TINY_MODELS["gpt2"].compressed()
    model.resize_token_embeddings(pad_to_multiple_of=8)
    assert model.config.vocab_size == model.lm_head.out_features == 104
    model.resize_token_embeddings(100, pad_to_multiple_of=16)
    assert model.get_input_embeddings().num_embeddings == 112


def test_tied_modules_still_share_their_factors(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.compressed()
    model.resize_token_embeddings(VOCAB_SIZE + 7)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert equal_state_dicts(model, reloaded)
    for each in (model, reloaded):
        first, *others = [each.get_submodule(name) for name in tiny.tables]
        for other in others:
            assert other.coefficients is first.coefficients
            assert other.bases is first.bases
            assert torch.equal(other.rows, first.rows)


def test_what_is_frozen_stays_frozen() -> None:
    model = TINY_MODELS["gpt2"].compressed()
    model.get_input_embeddings().requires_grad_(False)
    model.resize_token_embeddings(VOCAB_SIZE + 7)
    assert not model.lm_head.coefficients.requires_grad
    assert not model.lm_head.bases.requires_grad
    assert model.transformer.wpe.weight.requires_grad


def test_a_dropped_padding_token_is_one_no_more() -> None:
    dense = TINY_MODELS["distilbert"].build()
    dense.get_input_embeddings().padding_idx = VOCAB_SIZE - 1
    model = compress(dense, **COMPRESSED)
    model.get_input_embeddings().padding_idx = VOCAB_SIZE - 1
    model.resize_token_embeddings(VOCAB_SIZE - 1)
    assert model.get_input_embeddings().padding_idx is None


def test_the_configuration_of_another_model_is_left_alone() -> None:
    model, other = (TINY_MODELS["bert"].compressed() for _ in range(2))
    section = model.config.projclust
    other.config.projclust = section
    model.resize_token_embeddings(VOCAB_SIZE + 7)
    assert other.config.projclust is section
    assert sum(section["embedding"]["cluster_sizes"]) == VOCAB_SIZE


@torch.no_grad()
def test_a_nested_text_model_is_resized_from_the_outside(tmp_path: Path) -> None:
    model = compress(build_llava(), **COMPRESSED, head=True)
    model.resize_token_embeddings(VOCAB_SIZE + 7)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path)
    assert equal_state_dicts(model, reloaded)
    ids = torch.tensor([[VOCAB_SIZE + 6, 3, 5]])
    torch.testing.assert_close(model(input_ids=ids).logits, decompress(model)(input_ids=ids).logits, atol=1e-5, rtol=0)


def test_tokens_added_to_the_tokenizer_are_learned_by_the_trainer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A classifier can tell two new words apart only by their rows; with the bases frozen, no other row moves."""
    TINY_MODELS["distilbert"].compressed().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tokenizer = type(tokenizer).from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["splendid", "dreadful"])
    model = type(TINY_MODELS["distilbert"].compressed()).from_pretrained(tmp_path / "model")
    model.resize_token_embeddings(len(tokenizer))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("bases"))
    before = model.get_input_embeddings().weight.detach().clone()
    rows = [{**tokenizer(f"good {word} film"), "labels": label} for label, word in enumerate(("splendid", "dreadful"))]
    arguments = TrainingArguments(
        str(tmp_path / "run"), num_train_epochs=30, learning_rate=2e-2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows * 4, processing_class=tokenizer)
    trainer.train()
    after = model.get_input_embeddings().weight.detach()
    assert trainer.evaluate(rows)["eval_loss"] < 0.1
    assert (after[VOCAB_SIZE:] - before[VOCAB_SIZE:]).abs().amax(1).min() > 0.01
    unused = torch.tensor(
        [index for index in range(VOCAB_SIZE) if index not in {i for r in rows for i in r["input_ids"]}]
    )
    assert torch.equal(after[unused], before[unused])
    model.save_pretrained(tmp_path / "learned")
    assert equal_state_dicts(model, type(model).from_pretrained(tmp_path / "learned"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"new_num_tokens": 0}, "new_num_tokens=0; expected a whole number, 1 or more. Give the length of the"),
        ({"new_num_tokens": -5}, "new_num_tokens=-5; expected a whole number"),
        ({"new_num_tokens": 100.0}, "new_num_tokens=100.0; expected a whole number"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0; expected a whole number"),
        ({"pad_to_multiple_of": "8"}, "pad_to_multiple_of='8'; expected a whole number"),
    ],
)
def test_sizes_that_are_none_are_refused(given: dict, message: str) -> None:
    model = TINY_MODELS["bert"].compressed()
    before = TINY_MODELS["bert"].compressed()
    with pytest.raises(ValueError, match=message):
        model.resize_token_embeddings(**given)
    assert equal_state_dicts(model, before)


def test_a_class_that_resizes_more_than_its_table_is_refused_and_left_as_it_was() -> None:
    model = compress(MarianMTModel(MarianConfig(**SMALL_PAIR_SIZES, pad_token_id=0)), **COMPRESSED)
    before = copy.deepcopy(model)
    with pytest.raises(
        ValueError, match="MarianMTModel resizes more than its vocabulary table; .* Resize the dense mod"
    ):
        model.resize_token_embeddings(VOCAB_SIZE + 3)
    assert equal_state_dicts(model, before)
    assert model.config.vocab_size == VOCAB_SIZE
