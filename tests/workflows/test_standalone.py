"""Checkpoints that bring their code: loaded without hf_projclust, and with it."""

import importlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import torch
from conftest import TINY_MODELS, VOCAB_SIZE, equal_state_dicts
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
from typer.testing import CliRunner

from hf_projclust import cli, compress, decompress

CODE = {
    f"{part}_projclust.py"
    for part in (
        "checks",
        "configuration",
        "embedding",
        "head",
        "layout",
        "lookup",
        "modeling",
        "packed",
        "places",
        "resizing",
        "saving",
        "table",
        "vocabulary",
        "weight",
        "whole_folder",
    )
}


def standalone(name: str, folder: Path) -> Path:
    """A compressed model with its code, and an input of all tokens with its output."""
    tiny = TINY_MODELS[name]
    model = tiny.compressed()
    model.save_pretrained(folder, standalone=True)
    with torch.no_grad():
        save_file({**tiny.inputs(), "expected": model(**tiny.inputs())[0].contiguous()}, folder / "expected.st")
    return folder


def code_in(folder: Path) -> set[str]:
    """The code in a folder, which must be there just when the config names it."""
    files = {path.name for path in folder.glob("*.py")}
    assert ("auto_map" in json.loads((folder / "config.json").read_text())) == bool(files)
    return files


def normal_name(requirement: str) -> str:
    """The name of a package, which may be followed by versions and markers, as pip spells it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


@pytest.fixture(scope="module")
def other_packages() -> list[str]:
    """What is installed here beyond torch, Transformers and what they need."""
    kept: set[str] = set()
    left = ["torch", "transformers"]
    while left:
        name = left.pop()
        try:
            needed = [line for line in requires(name) or [] if not re.search(r"\bextra *==", line)]
        except PackageNotFoundError:
            continue
        wanted = {normal_name(line) for line in needed}
        left += wanted - kept
        kept |= {name, *wanted}
    owners = packages_distributions().items()
    return ["hf_projclust", *(name for name, by in owners if not kept & {normal_name(one) for one in by})]


@pytest.fixture
def run_bare(other_packages: list[str], tmp_path: Path):
    """Run code in a fresh process that can import torch and Transformers only."""
    start = f"""
import os, pickle, sys
for name in {other_packages!r}:
    sys.modules.setdefault(name, None)
import torch
from safetensors.torch import load_file
def is_expected(model, folder):
    inputs = load_file(os.path.join(folder, "expected.st"))
    expected = inputs.pop("expected")
    with torch.no_grad():
        return torch.equal(model(**inputs)[0], expected)
"""

    def run(code: str, *arguments: object) -> str:
        script = tmp_path / "script.py"  # a file, for processes that it spawns
        script.write_text(start + code)
        done = subprocess.run(
            [sys.executable, str(script), *map(str, arguments)],
            env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def test_without_the_plugin_logits_are_equal_and_the_model_pickles_and_is_saved_again(run_bare, tmp_path: Path) -> None:
    """Several checkpoints in one process, one of them with code of another version."""
    names = ("bert", "gpt2", "bart", "gemma3")
    folders = [standalone(name, tmp_path / name) for name in names]
    with (folders[1] / "modeling_projclust.py").open("a") as file:
        file.write("\nANOTHER_VERSION = True\n")
    run_bare(
        """
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
models = []
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    head = {"bert": AutoModelForMaskedLM, "bart": AutoModelForSeq2SeqLM}.get(config.model_type, AutoModelForCausalLM)
    models.append(head.from_pretrained(folder, trust_remote_code=True))
    models[-1].save_pretrained(folder + "-again")
    assert is_expected(head.from_pretrained(folder + "-again", trust_remote_code=True), folder)
for model, folder in zip(models, sys.argv[1:]):
    assert is_expected(model, folder)
    assert is_expected(pickle.loads(pickle.dumps(model)), folder)
assert [hasattr(sys.modules[type(model).__module__], "ANOTHER_VERSION") for model in models] == [0, 1, 0, 0]
""",
        *folders,
    )
    for folder in folders:
        again = folder.with_name(f"{folder.name}-again")
        assert code_in(again) == CODE
        for name in CODE:  # the code that loaded it, not that of another version
            assert (again / name).read_text() == (folder / name).read_text()
    assert equal_state_dicts(
        *(AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("bert", "bert-again"))
    )


def test_without_the_plugin_tokenizers_pipelines_and_other_heads_work(
    run_bare, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    for name in ("bert", "llama"):
        standalone(name, tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    run_bare(
        """
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
assert tokenizer("good film")["input_ids"] == [2, 5, 7, 3]
fill = pipeline("fill-mask", model=sys.argv[1], trust_remote_code=True)
assert is_expected(fill.model, sys.argv[1])
assert len(fill("good [MASK]")) == 5
classifier, report = AutoModelForSequenceClassification.from_pretrained(
    sys.argv[2], trust_remote_code=True, num_labels=3, output_loading_info=True
)
assert report["missing_keys"] == {"score.weight"}
assert classifier(torch.tensor([[5, 96]])).logits.shape == (1, 3)
""",
        tmp_path / "bert",
        tmp_path / "llama",
    )


def test_without_the_plugin_a_model_goes_to_spawned_workers(run_bare, tmp_path: Path) -> None:
    folder = standalone("bert", tmp_path / "bert")
    run_bare(
        """
from torch.utils.data import DataLoader
class Expected:
    def __init__(self, model, folder):
        self.model, self.folder = model, folder
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return is_expected(self.model, self.folder)
if __name__ == "__main__":
    from transformers import AutoModelForMaskedLM
    model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    loader = DataLoader(Expected(model, sys.argv[1]), num_workers=1, multiprocessing_context="spawn")
    assert [bool(batch) for batch in loader] == [True, True]
""",
        folder,
    )


def test_without_the_plugin_errors_say_what_to_do(run_bare, tmp_path: Path) -> None:
    folder = standalone("bert", tmp_path / "bert")
    TINY_MODELS["bert"].compressed().save_pretrained(tmp_path / "plain")
    output = run_bare(
        """
from transformers import AutoModelForMaskedLM
for folder in sys.argv[1:]:
    try:
        AutoModelForMaskedLM.from_pretrained(folder)
    except ValueError as error:
        print(error)
""",
        folder,
        tmp_path / "plain",
    )
    assert "Please pass the argument `trust_remote_code=True`" in output
    assert "model type `projclust`" in output


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}, {"trust_remote_code": True}])
def test_with_the_plugin_its_own_code_is_taken_without_a_question(
    tmp_path: Path, trust: dict, upstream_log, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = standalone("bert", tmp_path / "bert")
    for name in CODE:
        (folder / name).write_text("raise RuntimeError")
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a question was asked"))
    upstream_log.clear()
    model = AutoModelForMaskedLM.from_pretrained(folder, **trust)
    assert type(model).__module__ == "hf_projclust.modeling_projclust"
    assert [record.message for record in upstream_log.records if record.levelname != "INFO"] == []


def test_the_copy_of_a_checkpoint_and_the_plugin_live_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = standalone("bert", tmp_path / "copy_of_a_checkpoint")
    monkeypatch.syspath_prepend(tmp_path)
    copied = importlib.import_module("copy_of_a_checkpoint.configuration_projclust").ProjClustConfig
    theirs = AutoModelForMaskedLM.from_pretrained(folder, config=copied.from_pretrained(folder))
    ours = AutoModelForMaskedLM.from_pretrained(folder)
    assert type(theirs).__module__ == "copy_of_a_checkpoint.modeling_projclust"
    assert type(ours).__module__ == "hf_projclust.modeling_projclust"
    assert equal_state_dicts(theirs, ours)
    with pytest.raises(ValueError, match="runs the code of its checkpoint .*after `import hf_projclust`"):
        decompress(theirs)


def test_the_code_is_for_one_save_and_goes_where_a_model_was_loaded_from_it(tmp_path: Path) -> None:
    model = TINY_MODELS["gpt2"].compressed()
    model.save_pretrained(tmp_path / "with", standalone=True)
    with pytest.raises(TypeError):  # a save that fails
        model.save_pretrained(tmp_path / "failed", standalone=True, max_shard_size=[])
    model.save_pretrained(tmp_path / "without")
    TINY_MODELS["gpt2"].compressed().save_pretrained(tmp_path / "another")
    assert code_in(tmp_path / "with") == CODE
    assert not code_in(tmp_path / "without")
    assert not code_in(tmp_path / "another")
    assert not hasattr(model.config, "auto_map")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "with")
    loaded.save_pretrained(tmp_path / "again")
    loaded.save_pretrained(tmp_path / "stripped", standalone=False)
    loaded.config.save_pretrained(tmp_path / "config")
    assert code_in(tmp_path / "again") == code_in(tmp_path / "config") == CODE
    assert not code_in(tmp_path / "stripped")
    assert equal_state_dicts(AutoModelForCausalLM.from_pretrained(tmp_path / "stripped"), model)


def test_checkpoints_of_the_trainer_keep_the_code(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(standalone("gpt2", tmp_path / "gpt2"))
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, save_steps=1, report_to=[], use_cpu=True, dataloader_pin_memory=False
    )
    ids = list(range(VOCAB_SIZE - 8, VOCAB_SIZE))
    Trainer(model=model, args=arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 4).train()
    assert code_in(tmp_path / "run/checkpoint-1") == CODE


def test_a_decompressed_model_names_no_code(tmp_path: Path) -> None:
    standalone("bert", tmp_path / "bert")
    decompress(tmp_path / "bert").save_pretrained(tmp_path / "dense")
    assert not code_in(tmp_path / "dense")


def test_a_compressed_model_does_not_name_the_code_of_its_dense_model(tmp_path: Path) -> None:
    """Which would fill the table at random where it is run."""
    dense = TINY_MODELS["bert"].build()
    dense.config.auto_map = {"AutoConfig": "theirs.TheirConfig", "AutoModelForMaskedLM": "theirs.TheirModel"}
    model = compress(dense, num_clusters=3, compression=0.4)
    model.save_pretrained(tmp_path / "plain")
    assert not code_in(tmp_path / "plain")
    assert set(dense.config.auto_map) == {"AutoConfig", "AutoModelForMaskedLM"}


def test_the_command_adds_the_code_on_demand(tmp_path: Path) -> None:
    TINY_MODELS["bert"].build().save_pretrained(tmp_path / "dense")
    command = ["compress", str(tmp_path / "dense"), "--rank", "4", "--num-clusters", "2", "--token-counts", "uniform"]
    for name, more in (("with", ["--standalone"]), ("without", [])):
        result = CliRunner().invoke(cli.app, [*command, "--output", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
    assert code_in(tmp_path / "with") == CODE
    assert not code_in(tmp_path / "without")
