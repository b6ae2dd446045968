"""Sentence embeddings: compress, encode, fine-tune, save and reload, with the pooling that the model came with."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY_MODELS, WIDTH
from datasets import Dataset
from few_bits import DIM, NUM_TOKENS, dense_model
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    SparseEncoder,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tiny_tokenizers import build_word_level
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedTokenizerFast, T5EncoderModel
from typer.testing import CliRunner

from hf_projclust import cli, compress, decompress
from hf_projclust.modeling_projclust import ProjClustModelMixin
from hf_projclust.packed_projclust import PackedTable

TEXTS = [f"good film w{number}" for number in range(0, 80, 8)] + ["bad"]
OPTIONS = {"num_clusters": 3, "compression": 0.4}


@pytest.fixture
def dense(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder as sentence-transformers writes it: a model, pooling that is not the default, unit vectors."""
    TINY_MODELS["distilbert"].build().distilbert.save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    modules = [Transformer(str(tmp_path / "body")), Pooling(WIDTH, "max"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "dense"))
    return tmp_path / "dense"


def load(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def encode(folder_or_model: Path | SentenceTransformer) -> torch.Tensor:
    model = folder_or_model if isinstance(folder_or_model, SentenceTransformer) else load(folder_or_model)
    return model.encode(TEXTS, convert_to_tensor=True)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_compressed_folder_encodes_with_the_pooling_of_the_dense_one(dense: Path, tmp_path: Path) -> None:
    run("compress", dense, "--output", tmp_path / "out", "--num-clusters", 3, "--compression", 0.4)
    model, expected = load(tmp_path / "out"), load(dense)
    assert isinstance(model[0].model, ProjClustModelMixin)
    assert [type(module) for module in model] == [type(module) for module in expected]
    assert not torch.allclose(encode(model), encode(expected), atol=1e-2)
    expected[0].model = decompress(compress(expected[0].model, **OPTIONS))
    torch.testing.assert_close(encode(model), encode(expected), atol=1e-5, rtol=0)
    run("decompress", tmp_path / "out", "--output", tmp_path / "dense-again")
    torch.testing.assert_close(encode(tmp_path / "dense-again"), encode(model), atol=1e-5, rtol=0)


def test_a_folder_in_few_bits_encodes_as_its_table_does_and_is_evaluated(tmp_path: Path) -> None:
    dense_model("bert").bert.save_pretrained(tmp_path / "body")
    build_word_level(NUM_TOKENS).save_pretrained(tmp_path / "body")
    dense, out = tmp_path / "dense", tmp_path / "out"
    modules = [Transformer(str(tmp_path / "body")), Pooling(DIM, "max"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(dense))
    run("compress", dense, "--output", out, "--num-clusters", 2, "--ratio", 6)
    model, expected = load(out), load(dense)
    assert isinstance(model[0].model.get_input_embeddings(), PackedTable)
    expected[0].model = decompress(AutoModel.from_pretrained(out))
    torch.testing.assert_close(encode(model), encode(expected), atol=1e-5, rtol=0)
    (tmp_path / "dev.tsv").write_text(
        "sentence1\tsentence2\tscore\ngood w8\tgood w9\t4\nbad w8\tfilm\t1\nbad\tw3 w4\t2\n"
    )
    output = run("evaluate", out, "--against", dense, "--sts", tmp_path / "dev.tsv")
    assert "Embeddings of pairs: sentence-transformers." in output


def test_folders_of_cross_and_sparse_encoders_are_compressed_alike(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    for name, kind in (("distilbert", CrossEncoder), ("bert", SparseEncoder)):
        body, dense, out = (tmp_path / f"{name}-{part}" for part in ("body", "dense", "out"))
        TINY_MODELS[name].build().save_pretrained(body)
        tokenizer.save_pretrained(body)
        kind(str(body), device="cpu").save_pretrained(str(dense))
        run("compress", dense, "--output", out, "--num-clusters", 3, "--compression", 0.4)
        model, expected = kind(str(out), device="cpu"), kind(str(dense), device="cpu")
        assert isinstance(model[0].model, ProjClustModelMixin)
        expected[0].model = decompress(out)
        if kind is CrossEncoder:
            pairs = [(text, TEXTS[-1]) for text in TEXTS]
            got, wanted = (one.predict(pairs, convert_to_tensor=True) for one in (model, expected))
        else:
            got, wanted = (one.encode(TEXTS).to_dense() for one in (model, expected))
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_a_model_in_memory_is_compressed_by_the_line_that_the_error_names(dense: Path, tmp_path: Path) -> None:
    st = load(dense)
    before = encode(st)
    with pytest.raises(TypeError, match=r"st\[0\].model = compress\(st\[0\].model, ...\)"):
        compress(st, **OPTIONS)
    st[0].model = compress(st[0].model, **OPTIONS)
    assert not torch.allclose(encode(st), before, atol=1e-2)
    st.save_pretrained(str(tmp_path / "saved"))
    torch.testing.assert_close(encode(tmp_path / "saved"), encode(st), atol=1e-6, rtol=0)


def test_fine_tuning_changes_the_factors_and_reloads_with_equal_embeddings(dense: Path, tmp_path: Path) -> None:
    run("compress", dense, "--output", tmp_path / "out", "--num-clusters", 3, "--compression", 0.4)
    model = load(tmp_path / "out")
    before = model[0].model.get_input_embeddings().coefficients.detach().clone()
    pairs = Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[::-1]})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)
    ).train()
    assert not torch.equal(model[0].model.get_input_embeddings().coefficients, before)
    model.save_pretrained(str(tmp_path / "tuned"))
    for folder in (tmp_path / "tuned", tmp_path / "run/checkpoint-2"):
        torch.testing.assert_close(encode(folder), encode(model), atol=1e-6, rtol=0)
    assert not torch.allclose(encode(model), encode(tmp_path / "out"), atol=1e-2)


def test_a_model_in_a_subfolder_is_refused_with_a_way_that_works(dense: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"  # as sentence-transformers wrote it before 2.0
    shutil.copytree(dense, old / "0_Transformer")
    for name in ("modules.json", "config_sentence_transformers.json", "1_Pooling", "2_Normalize"):
        shutil.move(old / "0_Transformer" / name, old / name)
    modules = json.loads((old / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(modules))
    output = run("compress", old, "--output", tmp_path / "out", "--rank", 4, code=1)
    assert "not in a subfolder. Save it again by SentenceTransformer(folder).save_pretrained(new_folder)" in output
    load(old).save_pretrained(str(tmp_path / "new"))
    run("compress", tmp_path / "new", "--output", tmp_path / "out", "--rank", 4)
    assert isinstance(load(tmp_path / "out")[0].model, ProjClustModelMixin)


def test_an_encoder_of_two_parts_is_put_in_after_loading(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """sentence-transformers reads T5 and its like by their native class, which refuses the file."""
    compressed = compress(T5EncoderModel(copy.deepcopy(TINY_MODELS["t5"].config)), token_counts="uniform", **OPTIONS)
    compressed.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "out")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(tmp_path / "out")
    st = SentenceTransformer(str(tmp_path / "out"), device="cpu", model_kwargs={"ignore_mismatched_sizes": True})
    st[0].model = AutoModelForTextEncoding.from_pretrained(tmp_path / "out")
    assert isinstance(st[0].model, ProjClustModelMixin)
    tokens = tokenizer("good film w8", return_tensors="pt")
    with torch.no_grad():
        expected = compressed.eval()(tokens["input_ids"]).last_hidden_state.mean(dim=1)[0]
    torch.testing.assert_close(st.encode("good film w8", convert_to_tensor=True), expected, atol=1e-5, rtol=0)


def test_a_standalone_folder_encodes_without_the_plugin(dense: Path, tmp_path: Path) -> None:
    run("compress", dense, "--output", tmp_path / "out", "--rank", 4, "--standalone")
    code = """
import sys
sys.modules["hf_projclust"] = None
import torch
from sentence_transformers import SentenceTransformer
st = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
torch.save(st.encode(sys.argv[3:], convert_to_tensor=True), sys.argv[2])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "embeddings.pt"), *TEXTS],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(torch.load(tmp_path / "embeddings.pt"), encode(tmp_path / "out"), atol=1e-6, rtol=0)
