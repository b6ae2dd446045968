"""compress() and decompress(): one table of models, what is kept, and every refusal."""

import copy
import inspect
import re
from pathlib import Path

import pytest
import torch
from conftest import COMPRESSED, TINY_MODELS, VOCAB_SIZE, WIDTH, Tiny, build_llava, equal_state_dicts, factor_names
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    GPT2LMHeadModel,
    ViTConfig,
    ViTModel,
)
from transformers.utils import logging

from hf_projclust import ProjClustCheckpointError, compress, decompress
from hf_projclust.options import PRESETS
from hf_projclust.solvers import ProjectiveClustering, Rows, cluster
from hf_projclust.table_projclust import FactoredTable
from hf_projclust.vocabulary_projclust import factored_tables


def reference_table(model: nn.Module) -> torch.Tensor:
    """The table that the factors describe, row by row, in plain loops."""
    embedding = model.get_input_embeddings()
    layout = embedding.layout
    stored, coefficient_at, basis_at = [], 0, 0
    for size, rank in zip(layout.cluster_sizes, layout.cluster_ranks, strict=True):
        is_whole = rank == layout.dim  # its rows are kept as they are, without a basis
        basis = torch.eye(rank) if is_whole else embedding.bases[basis_at : basis_at + rank]
        basis_at += 0 if is_whole else rank
        for _ in range(size):
            stored.append(embedding.coefficients[coefficient_at : coefficient_at + rank] @ basis)
            coefficient_at += rank
    return torch.stack([stored[row] for row in embedding.rows.tolist()])


def test_every_table_that_shares_the_weight_is_factored(tiny: Tiny) -> None:
    model = tiny.compressed()
    assert set(factored_tables(model)) == set(tiny.tables)
    assert isinstance(model, tiny.model_class)


def test_outputs_equal_the_dense_model_with_the_decompressed_table(tiny: Tiny) -> None:
    model = tiny.compressed()
    dense = tiny.build()
    dense.get_input_embeddings().weight.data = reference_table(model).detach()
    dense.tie_weights()
    with torch.no_grad():
        ours, theirs = model(**tiny.inputs())[0], dense(**tiny.inputs())[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (tiny.build()(**tiny.inputs())[0] - theirs).abs().max() > 1e-3  # the table did change


def test_decompressed_model_is_native_and_equal(tiny: Tiny) -> None:
    model = tiny.compressed()
    dense = decompress(model)
    assert type(dense) is tiny.model_class
    assert type(dense.config) is type(tiny.config)
    assert not hasattr(dense.config, "projclust")
    torch.testing.assert_close(dense.get_input_embeddings().weight, reference_table(model))
    with torch.no_grad():
        torch.testing.assert_close(model(**tiny.inputs())[0], dense(**tiny.inputs())[0], atol=1e-5, rtol=0)


def test_save_and_reload_is_bit_equal_and_complete(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny.compressed()
    model.save_pretrained(tmp_path)
    reloaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert equal_state_dicts(model, reloaded)
    assert not any(report.values())


def test_a_training_step_moves_every_factor_of_every_cluster(tiny: Tiny) -> None:
    model = tiny.compressed().train()
    embedding = model.get_input_embeddings()
    before = [part.detach().clone() for block in embedding.blocks() for part in block if part is not None]
    inputs = tiny.inputs()
    output = model(**inputs)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    output.square().sum().backward()
    optimizer.step()
    after = [part for block in embedding.blocks() for part in block if part is not None]
    assert len(after) > len(embedding.layout.cluster_sizes)
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old, new)
    for table in factored_tables(model).values():  # tied modules still share the factors
        assert table.coefficients is embedding.coefficients
        assert table.bases is embedding.bases


def test_compressing_leaves_the_input_untouched(tiny: Tiny) -> None:
    dense = tiny.build()
    before, config_before = copy.deepcopy(dense.state_dict()), copy.deepcopy(dense.config)
    model = compress(dense, **COMPRESSED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert type(dense) is tiny.model_class
    assert dense.config == config_before
    assert all(torch.equal(before[key], tensor) for key, tensor in dense.state_dict().items())
    before, config_before = copy.deepcopy(model.state_dict()), copy.deepcopy(model.config)
    decompressed = decompress(model)
    with torch.no_grad():
        for parameter in decompressed.parameters():
            parameter.add_(1)
    assert model.config == config_before
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_what_is_not_the_table_is_kept() -> None:
    dense = TINY_MODELS["gpt2"].build().to(torch.bfloat16).train()
    dense.generation_config = GenerationConfig(max_new_tokens=7, bos_token_id=1, eos_token_id=2)
    dense.config.name_or_path = dense.name_or_path = "org/tiny"
    model = compress(dense, **COMPRESSED)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.device == dense.device
    assert model.training
    assert model.generation_config.max_new_tokens == 7
    assert model.generation_config is not dense.generation_config
    assert model.name_or_path == model.config.name_or_path == "org/tiny"
    assert model.config.model_type == "gpt2"
    for name, tensor in dense.state_dict().items():
        if name not in ("transformer.wte.weight", "lm_head.weight"):
            assert torch.equal(model.state_dict()[name], tensor)


def test_each_part_of_a_composite_keeps_its_attention() -> None:
    dense = build_llava()
    dense.set_attn_implementation({"text_config": "eager"})
    model = compress(dense, **COMPRESSED)
    for each in (dense, model, decompress(model)):
        assert each.config.text_config._attn_implementation == "eager"
        assert each.config.vision_config._attn_implementation == "sdpa"


def test_every_weight_keeps_its_own_dtype_and_whether_it_is_trained() -> None:
    dense = TINY_MODELS["bert"].build()
    dense.get_input_embeddings().half().requires_grad_(False)
    dense.bert.encoder.double().requires_grad_(False)
    dense.tie_weights()
    model = compress(dense, **COMPRESSED)
    assert model.get_input_embeddings().coefficients.dtype == torch.float16
    assert torch.equal(model.bert.encoder.layer[0].output.dense.weight, dense.bert.encoder.layer[0].output.dense.weight)
    for one in (model, decompress(model)):
        assert not one.get_input_embeddings().weight.requires_grad
        for name, parameter in one.named_parameters():
            if name in dict(dense.named_parameters()):
                assert (parameter.dtype, parameter.requires_grad) == (
                    dense.get_parameter(name).dtype,
                    dense.get_parameter(name).requires_grad,
                )


def test_labels_of_a_classifier_are_kept() -> None:
    dense = TINY_MODELS["distilbert"].build()
    dense.config.id2label, dense.config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    model = compress(dense, **COMPRESSED)
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert torch.equal(model.classifier.weight, dense.classifier.weight)


@pytest.mark.parametrize(("preset", "num_clusters"), [("svd", 1), ("messi", 5)])
def test_stored_numbers_fit_the_budget_and_nearly_fill_it(preset: str, num_clusters: int) -> None:
    config = BertConfig(vocab_size=1000, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = compress(BertModel(config), preset=preset, compression=0.3)
    layout = model.get_input_embeddings().layout
    budget = 0.7 * 1000 * 32
    assert layout.num_clusters == num_clusters
    assert layout.num_parameters == sum(p.numel() for p in model.get_input_embeddings().parameters())
    assert budget - (1000 + num_clusters * 32) < layout.num_parameters <= budget


def test_full_rank_keeps_the_table_exactly() -> None:
    dense = TINY_MODELS["roberta"].build()
    model = compress(dense, num_clusters=3, rank=WIDTH)
    assert torch.equal(model.get_input_embeddings().dense_weight(), dense.embeddings.word_embeddings.weight)
    assert model.config.projclust["solver"]["embedding"]["relative_squared_error"] == 0


@torch.no_grad()
def test_recorded_error_is_that_of_what_a_look_up_gives_as_rounded() -> None:
    dense = TINY_MODELS["bert"].build()
    dense.get_input_embeddings().weight.copy_(torch.randn(VOCAB_SIZE, 2) @ torch.randn(2, WIDTH))
    model = compress(dense.to(torch.bfloat16), num_clusters=1, rank=2)  # rounding is all that is lost
    table = dense.get_input_embeddings().weight.float()
    rows = model.get_input_embeddings()(torch.arange(VOCAB_SIZE)).float()
    error = float((table - rows).square().sum() / table.square().sum())
    assert model.config.projclust["solver"]["embedding"]["relative_squared_error"] == pytest.approx(error, rel=1e-2)


@torch.no_grad()
def test_recorded_error_and_energy_are_those_of_the_stored_factors() -> None:
    dense = TINY_MODELS["bert"].build()
    model = compress(dense, num_clusters=3, rank=8, seed=3)
    solver = model.config.projclust["solver"]["embedding"]
    table = dense.get_input_embeddings().weight
    error = (table - reference_table(model)).square().sum() / table.square().sum()
    assert solver["relative_squared_error"] == pytest.approx(float(error), rel=1e-4)
    assert 0.01 < solver["relative_squared_error"] < 0.9
    embedding = model.get_input_embeddings()
    order, start = embedding.rows.long().argsort(), 0
    for size, kept in zip(embedding.layout.cluster_sizes, solver["energy_kept"], strict=True):
        members = order[start : start + size]
        left = (table - reference_table(model))[members].square().sum() / table[members].square().sum()
        assert kept == pytest.approx(1 - float(left), rel=1e-4)
        assert torch.equal(members, members.sort().values)  # tokens of a cluster stand in the order of their ids
        start += size


def test_how_it_was_compressed_is_recorded() -> None:
    dense = TINY_MODELS["bert"].build()
    solver = compress(dense, preset="svd", compression=0.4, seed=7).config.projclust["solver"]["embedding"]
    given = {"preset": "svd", "num_clusters": 1, "compression": 0.4, "rank": None, "p": 2.0, "seed": 7}
    assert {key: solver[key] for key in given} == given


def test_same_seed_same_model_and_another_seed_another() -> None:
    dense = TINY_MODELS["bert"].build()
    first, again, other = (compress(dense, num_clusters=3, compression=0.5, seed=seed) for seed in (1, 1, 2))
    assert equal_state_dicts(first, again)
    assert not equal_state_dicts(first, other)


@pytest.mark.parametrize(
    "option",
    [
        {"num_starts": 1},
        {"max_rounds": 1},
        {"seed": 5},
        {"num_clusters": 3},
        {"adaptive_ranks": False},
        {"p": 1.0},
        {"token_counts": "uniform"},
        {"count_exponent": 0.0},
        {"norm_exponent": 2.0},
    ],
)
def test_every_option_changes_the_model_and_is_recorded(option: dict) -> None:
    torch.manual_seed(0)
    dense = BertModel(BertConfig(vocab_size=600, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    counts = torch.arange(600)
    options = {"num_clusters": 4, "compression": 0.5, "seed": 1, "num_starts": 4, "token_counts": counts}
    plain, changed = (compress(dense, **given) for given in (options, options | option))
    assert not equal_state_dicts(plain, changed)
    name, value = next(iter(option.items()))
    assert changed.config.projclust["solver"]["embedding"][name] == value


def test_every_option_of_the_solver_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"num_clusters": 3, "p": 1.5, "seed": 7, "num_starts": 4, "max_rounds": 5, "tolerance": 0.01}
    received: dict = {}

    def watched(rows: Rows, **options: object) -> ProjectiveClustering:
        received.update(options)
        return cluster(rows, **options)

    monkeypatch.setattr("hf_projclust.factoring.cluster", watched)
    model = compress(TINY_MODELS["bert"].build(), compression=0.4, token_counts="uniform", **given)
    assert {name: received[name] for name in given} == {**given, "num_clusters": [3]}
    assert {name: model.config.projclust["solver"]["embedding"][name] for name in given} == given
    options = {
        name
        for name, parameter in inspect.signature(cluster).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert options - given.keys() == {"rule", "final_rule", "on_round", "checkpoint"}  # which other options make


@pytest.mark.parametrize("preset", ["svd", "messi", "robust"])
def test_presets_that_count_no_tokens_need_no_tokenizer_that_fits(preset: str, tokenizer, tmp_path: Path) -> None:
    TINY_MODELS["bert"].build().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    add_tokens(tmp_path / "tokenizer.json", "more", "tokens")
    larger = AutoTokenizer.from_pretrained(tmp_path)
    expected = compress(TINY_MODELS["bert"].build(), preset=preset, compression=0.4)
    assert equal_state_dicts(compress(tmp_path, preset=preset, compression=0.4), expected)
    assert equal_state_dicts(compress(tmp_path, preset=preset, compression=0.4, tokenizer=larger), expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: remove(path, path.with_name("tokenizer_config.json")), "(its files have no vocabulary)"),
        (lambda path: remove(path), "(ValueError: Couldn't instantiate the backend tokenizer from one of: (1)"),
        (lambda path: path.write_text(path.read_text()[:200]), "(JSONDecodeError: Expecting value: line"),
        (lambda path: path.write_text("{}"), "(KeyError: 'added_tokens')"),
        (lambda path: path.write_text(path.read_text().replace("WordLevel", "No")), "(Exception: data did not match"),
        (lambda path: add_tokens(path, "more", "tokens"), "ids for 99 tokens and the table 97 rows"),
    ],
)
def test_the_default_gives_way_to_uniform_where_the_tokenizer_is_of_no_use(
    damage, message: str, tokenizer, tmp_path: Path, upstream_log
) -> None:
    TINY_MODELS["bert"].build().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    damage(tmp_path / "tokenizer.json")
    model = compress(tmp_path, compression=0.4)
    assert message in upstream_log.text
    assert "All tokens count alike now" in upstream_log.text
    assert model.config.projclust["solver"]["embedding"]["token_counts"] == "uniform"
    with pytest.raises(ValueError, match=re.escape(message)):
        compress(tmp_path, compression=0.4, token_counts="tokenizer")


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink()


def add_tokens(path: Path, *tokens: str) -> None:
    larger = AutoTokenizer.from_pretrained(path.parent)
    larger.add_tokens(list(tokens))
    larger.save_pretrained(path.parent)


def test_a_tokenizer_that_is_given_must_fit(tokenizer) -> None:
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["more"])
    with pytest.raises(ValueError, match="ids for 98 tokens and the table 97 rows; expected a row for each. Use"):
        compress(TINY_MODELS["bert"].build(), compression=0.4, tokenizer=larger)


def test_a_model_of_no_name_counts_tokens_alike_with_a_warning(upstream_log) -> None:
    model = compress(TINY_MODELS["bert"].build(), compression=0.4)
    assert "no tokenizer can be read for 'the model' (it has no name_or_path)" in upstream_log.text
    assert model.config.projclust["solver"]["embedding"]["token_counts"] == "uniform"


def test_a_checkpoint_of_another_table_or_other_counts_is_refused(tmp_path: Path) -> None:
    options = {"num_clusters": 3, "compression": 0.4, "checkpoint": tmp_path / "saved"}
    dense, other = TINY_MODELS["bert"].build(), TINY_MODELS["bert"].build(seed=1)
    counts = torch.arange(VOCAB_SIZE)
    first = compress(dense, **options, token_counts=counts)
    assert equal_state_dicts(first, compress(dense, **options, token_counts=counts))
    for model, given in ((other, counts), (dense, counts.flip(0))):
        with pytest.raises(ValueError, match="belongs to another run: table differ"):
            compress(model, **options, token_counts=given)


def test_a_preset_is_the_combination_of_options_that_it_names() -> None:
    dense = TINY_MODELS["bert"].build()
    for preset, options in PRESETS.items():
        named = compress(dense, preset=preset, compression=0.4, token_counts="uniform")
        given = compress(dense, compression=0.4, **{**options, "token_counts": "uniform"})
        assert equal_state_dicts(named, given)


def test_a_progress_bar_is_shown_and_can_be_switched_off(capfd: pytest.CaptureFixture) -> None:
    dense = TINY_MODELS["bert"].build()
    compress(dense, rank=3)
    assert "Clustering 97 tokens" in capfd.readouterr().err
    logging.disable_progress_bar()
    try:
        compress(dense, rank=3)
    finally:
        logging.enable_progress_bar()
    assert capfd.readouterr().err == ""


def test_a_folder_can_be_given_instead_of_a_model(tmp_path: Path) -> None:
    dense = TINY_MODELS["distilbert"].build()
    dense.save_pretrained(tmp_path / "dense")
    from_folder = compress(tmp_path / "dense", num_clusters=3, compression=0.4)
    assert equal_state_dicts(from_folder, compress(dense, num_clusters=3, compression=0.4))
    assert from_folder.name_or_path == str(tmp_path / "dense")
    from_folder.save_pretrained(tmp_path / "compressed")
    assert equal_state_dicts(decompress(str(tmp_path / "compressed")), decompress(from_folder))


def test_a_checkpoint_that_names_no_class_loads_as_auto_model(tmp_path: Path) -> None:
    TINY_MODELS["roberta"].build().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"RobertaModel"', "")
    (tmp_path / "config.json").write_text(config)
    assert type(compress(tmp_path, num_clusters=3, compression=0.4)).__name__ == "ProjClustRobertaModel"


def test_body_of_a_task_checkpoint_loads(tmp_path: Path) -> None:
    tiny = TINY_MODELS["bert"]
    model = tiny.compressed()
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(body.get_input_embeddings().coefficients, model.get_input_embeddings().coefficients)


def test_factors_stand_once_in_the_file(tiny: Tiny, tmp_path: Path) -> None:
    from safetensors import safe_open

    tiny.compressed().save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        parts = {"coefficients", "bases", "rows"}
        stored = [key for key in file.keys() if key.rpartition(".")[2] in parts]  # noqa: SIM118
    assert sorted(stored) == sorted(factor_names(tiny))


def test_bert_masked_logits_equal_within_1e_5_and_padding_is_masked() -> None:
    tiny = TINY_MODELS["bert"]
    model = tiny.compressed()
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
        inputs = tiny.inputs()
        logits = model(**inputs).logits
        torch.testing.assert_close(logits, decompress(model)(**inputs).logits, atol=1e-5, rtol=0)
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


# Bad input: each error says what was given, what was expected, and what to do.

BAD_OPTIONS = [
    ({"compression": 0.0}, "compression=0.0", "above 0 and below 1", "give 0.4"),
    ({"compression": 1.0}, "compression=1.0", "above 0 and below 1", "give 0.4"),
    ({"compression": -0.2}, "compression=-0.2", "above 0 and below 1", "give 0.4"),
    ({"compression": 40}, "compression=40;", "above 0 and below 1", "give 0.4"),
    ({"compression": float("nan")}, "compression=nan", "above 0 and below 1", "give 0.4"),
    ({}, "compression=None, rank=None, ratio=None and table_bytes=None", "exactly one", "Give the share"),
    ({"compression": 0.4, "rank": 4}, "compression=0.4, rank=4, ratio=None", "exactly one", "Give the share"),
    ({"rank": 0}, "rank=0", "1 or more", "Give the coordinates"),
    ({"rank": 4.5}, "rank=4.5", "expected a whole number", "Give the coordinates"),
    ({"rank": True}, "rank=True", "expected a whole number", "Give the coordinates"),
    ({"rank": "4"}, "rank='4'", "expected a whole number", "Give the coordinates"),
    ({"compression": "0.4"}, "compression='0.4'", "expected a number above 0", "give 0.4"),
    ({"rank": WIDTH + 1}, f"rank={WIDTH + 1}", f"1 to {WIDTH}", "Use a smaller rank"),
    ({"rank": 4, "num_clusters": VOCAB_SIZE + 1}, f"num_clusters={VOCAB_SIZE + 1}", "1 to 97", "Use fewer clusters"),
    ({"rank": 4, "num_clusters": 0}, "num_clusters=0", "1 or more", "Leave it out"),
    (
        {"compression": 0.99, "preset": "messi"},
        "compression=0.99 leaves 15 numbers",
        "at least 177",
        "use compression <= 0.885",
    ),
    (
        {"compression": 0.4, "preset": "messi", "num_clusters": 90},
        "leaves 931 numbers",
        "at least 1,537",
        "use compression <= 0.0",
    ),
    ({"compression": 0.99}, "compression=0.99 leaves 15 numbers", "at least 113", "use compression <= 0.927"),
    ({"compression": 0.4, "preset": "kmeans"}, "preset='kmeans'", "'messi', 'svd', 'robust'", "Check the spelling"),
    ({"compression": 0.4, "preset": "svd", "num_clusters": 5}, "num_clusters=5", "expected 1", "preset='messi'"),
    ({"rank": 4, "preset": ["svd"]}, "preset=['svd']", "'messi', 'svd', 'robust'", "Check the spelling"),
    ({"rank": 4, "num_starts": None}, "num_starts=None", "expected a whole number", "Leave it out"),
    ({"rank": 4, "tolerance": None}, "tolerance=None", "expected a number", "Leave it out"),
    ({"rank": 4, "seed": 2**32 + 1}, "seed=4294967297", "at most 2**32", "Any smaller number"),
    ({"rank": 4, "seed": -1}, "seed=-1", "0 or more", "Any such"),
    ({"rank": 4, "num_starts": 0}, "num_starts=0", "1 or more", "Leave it out"),
    ({"rank": 4, "max_rounds": 0}, "max_rounds=0", "1 or more", "Leave it out"),
    ({"rank": 4, "tolerance": -1.0}, "tolerance=-1.0", "above 0 and below 1", "Leave it out"),
]


@pytest.mark.parametrize(("options", "given", "expected", "way_out"), BAD_OPTIONS)
def test_bad_options_are_refused(options: dict, given: str, expected: str, way_out: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        compress(TINY_MODELS["bert"].build(), **options)
    assert all(part in str(caught.value) for part in (given, expected, way_out))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_table_that_is_not_finite_is_refused_by_its_first_bad_token(bad: float) -> None:
    dense = TINY_MODELS["bert"].build()
    dense.get_input_embeddings().weight.data[[71, 30], 3] = bad
    with pytest.raises(ValueError, match=r"2 of 97 rows, the first at token id 30; expected finite.*Repair"):
        compress(dense, **COMPRESSED)


def test_factors_that_overflow_the_dtype_are_refused() -> None:
    dense = TINY_MODELS["roberta"].build().half()
    dense.get_input_embeddings().weight.data.fill_(3e4)
    with pytest.raises(ValueError, match=r"do not fit in torch.float16.*Expected.*load the model in"):
        compress(dense, num_clusters=1, rank=2)


def test_a_rank_that_saves_nothing_is_warned_of(upstream_log) -> None:
    dense = TINY_MODELS["bert"].build()
    compress(dense, num_clusters=5, rank=8)
    assert "nothing is saved" not in upstream_log.text
    compress(dense, num_clusters=5, rank=15)
    assert "the factors take 10,620 bytes, and the table 6,208: nothing is saved. Use" in upstream_log.text


def test_a_compressed_model_is_not_compressed_again(tmp_path: Path) -> None:
    model = TINY_MODELS["bert"].compressed()
    model.save_pretrained(tmp_path)
    for again in (model, tmp_path):
        with pytest.raises(ValueError, match="compressed already; expected a dense model. Compress the dense"):
            compress(again, num_clusters=3, compression=0.4)


def test_a_dense_model_is_not_decompressed() -> None:
    with pytest.raises(ValueError, match="BertForMaskedLM is not compressed; expected .* Use the model as it is"):
        decompress(TINY_MODELS["bert"].build())


def test_a_model_without_a_token_embedding_is_refused() -> None:
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(ValueError, match="ViTModel has ViTPatchEmbeddings.*expected an nn.Embedding.*Only models"):
        compress(vit, compression=0.4)


@pytest.mark.parametrize("path", ["no/such/folder/here", "./missing", "/nowhere/at/all", "a b c"])
def test_a_folder_that_does_not_exist_is_refused(path: str) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder; expected .* Check the spelling") as caught:
        compress(path, compression=0.4)
    assert repr(path) in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json; expected .* Check the path"):
        compress(tmp_path, compression=0.4)
    TINY_MODELS["gpt2"].config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"could not be loaded; expected .* config.json and weights.*Check"):
        compress(tmp_path, compression=0.4)


def test_options_are_checked_before_a_model_is_looked_for() -> None:
    with pytest.raises(ValueError, match="compression=2"):
        compress("/nowhere/at/all", compression=2)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="got a Linear; expected a Transformers model.*pass the model inside"):
        compress(nn.Linear(2, 2), compression=0.4)


def test_weights_that_are_not_in_memory_are_refused() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(TINY_MODELS["gpt2"].config)
    with pytest.raises(ValueError, match="not in memory.*expected all of them.*without a device_map"):
        compress(model, compression=0.4)


@pytest.mark.parametrize("tie", [True, False])
def test_a_head_that_is_tied_in_name_only_stays_apart(tie: bool) -> None:
    dense = TINY_MODELS["gpt2"].build()
    dense.lm_head.weight = nn.Parameter(torch.randn(VOCAB_SIZE, WIDTH))
    dense.config.tie_word_embeddings = tie
    model = compress(dense, num_clusters=3, rank=WIDTH)
    assert torch.equal(model.lm_head.weight, dense.lm_head.weight)


def test_another_module_that_is_tied_in_name_only_is_refused_not_dropped() -> None:
    dense = TINY_MODELS["bart"].build()
    dense.model.encoder.embed_tokens.weight = nn.Parameter(torch.randn(VOCAB_SIZE, WIDTH))
    with pytest.raises(ValueError, match="ties a BartScaledWordEmbedding to the vocabulary table.*tie_weights"):
        compress(dense, compression=0.4)


def test_a_model_with_modules_of_its_own_is_refused_not_filled_at_random() -> None:
    dense = TINY_MODELS["distilbert"].build()
    dense.classifier = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2))
    with pytest.raises(ValueError, match="does not fit .*classifier.1.weight.*expected the modules of the native"):
        compress(dense, compression=0.4)


def test_a_configuration_that_could_not_be_found_again_is_refused() -> None:
    class MyConfig(BertConfig):
        model_type = "mybert"

    fields = TINY_MODELS["bert"].config.to_diff_dict()
    del fields["model_type"]
    with pytest.raises(ValueError, match="MyConfig of model type 'mybert'; expected one that AutoConfig.*Register"):
        compress(BertModel(MyConfig(**fields)), compression=0.4)


def test_a_checkpoint_without_its_table_is_refused(tmp_path: Path) -> None:
    TINY_MODELS["roberta"].build().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["embeddings.word_embeddings.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no embeddings.word_embeddings.weight; expected.*fetch"):
        compress(tmp_path, compression=0.4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT calls it
def test_adapters_and_quantised_weights_are_refused() -> None:
    from peft import LoraConfig, get_peft_model

    injected = TINY_MODELS["bert"].build()
    injected.add_adapter(LoraConfig(target_modules=["query"]))
    with pytest.raises(ValueError, match="has PEFT adapters; expected a plain model. Merge or unload them"):
        compress(injected, compression=0.4)
    wrapped = get_peft_model(TINY_MODELS["bert"].build(), LoraConfig(target_modules=["query"]))
    with pytest.raises(TypeError, match="got a PeftModel; expected a Transformers model.*pass the model inside"):
        compress(wrapped, compression=0.4)
    quantised = TINY_MODELS["bert"].build()
    quantised.hf_quantizer = object()  # what every quantiser of Transformers leaves on its model
    with pytest.raises(ValueError, match="is quantised; expected float weights. Load it without"):
        compress(quantised, compression=0.4)


def test_a_model_of_another_width_than_its_config_says_is_refused() -> None:
    model = TINY_MODELS["bert"].compressed()
    model.config.vocab_size = 50
    with pytest.raises(ProjClustCheckpointError, match=r"50 x 16; its configuration describes .* 97 x 16"):
        type(model)(model.config)


@torch.no_grad()
def test_a_model_from_scratch_starts_like_a_native_one() -> None:
    compressed = TINY_MODELS["bert"].compressed()
    torch.manual_seed(0)
    fresh = AutoModel.from_config(compressed.config)
    weight = fresh.get_input_embeddings().dense_weight()
    assert isinstance(fresh.get_input_embeddings(), FactoredTable)
    assert torch.count_nonzero(weight[0]) == 0  # the padding row
    assert float(weight[1:].std()) == pytest.approx(compressed.config.initializer_range, rel=0.2)
