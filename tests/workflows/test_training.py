"""Fine-tuning with the stock Trainer: what it changes, resuming, and the best model at the end."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, VOCAB_SIZE, equal_state_dicts
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_projclust import compress, decompress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A compressed body without a head."""
    compress(TINY_MODELS["distilbert"].build().distilbert, num_clusters=3, compression=0.4).save_pretrained(
        tmp_path / "compressed"
    )
    return tmp_path / "compressed"


@pytest.fixture
def examples(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    """Good, bad, and neither: three labels that a word decides; every token occurs."""
    rng = random.Random(0)
    words = [word for word, index in tokenizer.get_vocab().items() if index >= 5]
    rows = []
    for number in range(96):
        label = number % 3
        text = rng.sample([word for word in words if word not in ("good", "bad")], 6)
        text.insert(rng.randrange(6), ["good", "bad", words[-1]][label])
        rows.append({**tokenizer(" ".join(text)), "labels": label, "text": " ".join(text)})
    return rows


def trainer(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list, output: Path, **options: Any) -> Trainer:
    set_seed(1)
    arguments: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "report_to": [],
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 4,
        "seed": 1,
    }
    return Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3),
        args=TrainingArguments(**(arguments | options)),
        train_dataset=rows,
        eval_dataset=rows[:24],
        data_collator=DataCollatorWithPadding(tokenizer),
    )


def test_the_loss_falls_and_every_factor_of_every_cluster_changes(
    folder: Path, tokenizer: PreTrainedTokenizerFast, examples: list, tmp_path: Path
) -> None:
    stock = trainer(folder, tokenizer, examples, tmp_path / "run", num_train_epochs=40, learning_rate=1e-2)
    assert stock.args.remove_unused_columns  # the default, which reads the model's signature
    embedding = stock.model.get_input_embeddings()
    before = [part.detach().clone() for block in embedding.blocks() for part in block if part is not None]
    stock.train()
    losses = [entry["loss"] for entry in stock.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    after = [part for block in embedding.blocks() for part in block if part is not None]
    assert len(after) > len(embedding.layout.cluster_sizes) == 3
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old, new)


def test_a_resumed_run_ends_bit_equal(
    folder: Path, tokenizer: PreTrainedTokenizerFast, examples: list, tmp_path: Path
) -> None:
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = trainer(folder, tokenizer, examples, tmp_path / "whole", **options)
    whole.train()
    resumed = trainer(folder, tokenizer, examples, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"))
    assert equal_state_dicts(whole.model, resumed.model)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole/checkpoint-8")
    assert equal_state_dicts(saved, whole.model)
    halfway = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole/checkpoint-4")
    assert not equal_state_dicts(halfway, whole.model)


def test_the_best_model_is_loaded_at_the_end(
    folder: Path, tokenizer: PreTrainedTokenizerFast, examples: list, tmp_path: Path, upstream_log
) -> None:
    scores = iter([1.0, 3.0, 2.0])
    stock = trainer(
        folder,
        tokenizer,
        examples,
        tmp_path / "run",
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    stock.compute_metrics = lambda _: {"score": next(scores)}
    upstream_log.clear()
    stock.train()
    assert stock.state.best_model_checkpoint == str(tmp_path / "run/checkpoint-24")
    best, last = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / f"run/checkpoint-{step}") for step in (24, 36)
    )
    assert equal_state_dicts(stock.model, best)
    assert not equal_state_dicts(best, last)
    assert [record.message for record in upstream_log.records if "missing keys" in record.message] == []


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_training_under_bf16_autocast_keeps_factors_in_full_precision_and_lowers_the_loss(
    folder: Path, tokenizer: PreTrainedTokenizerFast, examples: list, tmp_path: Path
) -> None:
    stock = trainer(folder, tokenizer, examples, tmp_path, bf16=True, num_train_epochs=40, learning_rate=1e-2)
    stock.train()
    losses = [entry["loss"] for entry in stock.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    embedding = stock.model.get_input_embeddings()
    assert embedding.coefficients.dtype == embedding.bases.dtype == torch.float32


@pytest.mark.parametrize(("name", "tied"), [("distilbert", False), ("bert", True)])
def test_gradients_are_those_of_the_dense_table_with_padding_and_without_some_clusters(name: str, tied: bool) -> None:
    """Coordinates get the dense gradient times the basis: without a tied head none for padding and absent clusters."""
    model = TINY_MODELS[name].compressed().eval()
    dense = decompress(model).eval()
    table = model.get_input_embeddings()
    layout = table.layout
    ids = (table.rows < layout.cluster_sizes[0]).nonzero().flatten()[:12].view(2, 6).clone()
    ids[:, 4:] = table.padding_idx
    labels = ids.masked_fill(ids == table.padding_idx, -100) if tied else torch.tensor([0, 1])
    for each in (model, dense):
        each(input_ids=ids, attention_mask=(ids != table.padding_idx).long(), labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    in_order = dense.get_input_embeddings().weight.grad[table.rows.argsort()]  # (n, d), cluster after cluster
    found = table.coefficients.grad.split(layout.coefficient_counts)
    for rows, (_, basis), gradient in zip(in_order.split(layout.cluster_sizes), table.blocks(), found, strict=True):
        torch.testing.assert_close(gradient.view(len(rows), -1), rows if basis is None else rows @ basis.T)
    assert [bool(part.any()) for part in found] == [True, tied, tied]
    of_padding = dense.get_input_embeddings().weight.grad[table.padding_idx]
    assert bool(of_padding.any()) == tied


def causal_run(name: str, output: Path, **options: Any) -> tuple[dict, dict]:
    """Parameters before and after four plain gradient steps of a tiny causal model, each on eight rows."""
    model = TINY_MODELS[name].compressed()
    start = parameters(model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB_SIZE, (32, 6), generator=generator).tolist()
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "learning_rate": 0.1,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    stock = Trainer(
        model=model,
        args=TrainingArguments(str(output), **(arguments | options)),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
    )
    stock.train()
    return start, parameters(model)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}],
    ids=["accumulation of half batches", "gradient checkpointing"],
)
def test_ways_to_save_memory_end_where_plain_training_ends(name: str, options: dict, tmp_path: Path) -> None:
    start, plain = causal_run(name, tmp_path)
    _, end = causal_run(name, tmp_path, **options)
    assert not any(torch.equal(start[key], plain[key]) for key in plain)
    torch.testing.assert_close(end, plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("frozen", ["bases", "coefficients"])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_one_line_freezes_a_factor_and_the_tied_heads_follow(frozen: str, name: str, tmp_path: Path) -> None:
    model = TINY_MODELS[name].compressed()
    model.get_input_embeddings().get_parameter(frozen).requires_grad_(False)  # as `.bases.requires_grad_(False)`
    start = parameters(model)
    ids = TINY_MODELS[name].inputs()["input_ids"]
    Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no", weight_decay=0.1
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids.tolist()],
    ).train()
    end = parameters(model)
    of_table = {key for key in end if key.endswith((".bases", ".coefficients"))}
    assert of_table
    unchanged = {key for key in of_table if torch.equal(start[key], end[key])}
    assert unchanged == {key for key in of_table if key.endswith(frozen)}
    first, *others = [model.get_submodule(table) for table in TINY_MODELS[name].tables]
    assert all(getattr(other, frozen) is getattr(first, frozen) for other in others)
