"""The way to the Hub and back: compress, push, load by id elsewhere; the Trainer's pushes; adapters on top."""

import getpass
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, equal_state_dicts, run_cli, run_python
from datasets import Dataset
from huggingface_hub import ModelCard, upload_file
from huggingface_hub.errors import HfHubHTTPError
from loopback_hub import Fault, LoopbackHub
from peft import AutoPeftModelForTokenClassification, LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)

from hf_projclust import compress
from hf_projclust.configuration_projclust import CODE_FILES

BASE_CARD = "---\nlicense: mit\nlanguage: de\npipeline_tag: fill-mask\n---\n\n# tiny\n"


@pytest.fixture(autouse=True)
def hub_without_secrets(
    signed_in: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackHub]:
    """The Hub; after the test, no file in it holds a path of this machine, a name of its user, or a token."""
    monkeypatch.chdir(tmp_path)
    yield signed_in
    checked = 0
    names = rf"\b({re.escape(getpass.getuser())}|{re.escape(socket.gethostname())})\b"
    for repo_id in signed_in.repositories:
        for name, content in signed_in.files(repo_id).items():
            text = content.decode("latin-1")
            for secret in (*signed_in.users, str(tmp_path), str(Path.home()) + "/", str(Path(__file__).parent)):
                assert secret not in text, (repo_id, name, secret)
            if not name.endswith((".safetensors", ".png", ".bin")):
                assert not re.search(names, text), (repo_id, name)
            checked += 1
    assert checked > 5


@pytest.fixture
def base(hub_without_secrets: LoopbackHub, tokenizer: Any) -> str:
    """A dense model on the Hub, with a tokenizer and a card."""
    TINY_MODELS["bert"].build().push_to_hub("org/tiny-bert")
    tokenizer.push_to_hub("org/tiny-bert")
    push_card("org/tiny-bert", BASE_CARD)
    return "org/tiny-bert"


@pytest.fixture
def published(base: str) -> str:
    """The model, compressed and pushed by the command line."""
    run_cli("compress", base, "--compression", 0.4, "--num-clusters", 3, "--output", "tiny-pc40")
    run_cli("push", "tiny-pc40", "org/tiny-pc40")
    return "org/tiny-pc40"


def push_card(repo_id: str, text: str) -> None:
    upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo_id)


def card_of(hub: LoopbackHub, repo_id: str) -> ModelCard:
    return ModelCard(hub.files(repo_id)["README.md"].decode())


LOAD = """
import sys
import torch
import hf_projclust
from transformers import AutoModelForMaskedLM, AutoTokenizer
name, *options = sys.argv[1:]
options = dict(option.split("=") for option in options)
model = AutoModelForMaskedLM.from_pretrained(name, **options)
inputs = AutoTokenizer.from_pretrained(name, **options)("good film", return_tensors="pt")
with torch.no_grad():
    print(type(model).__name__, model(**inputs).logits.numpy().tobytes().hex())
"""


def test_a_pushed_model_is_loaded_by_its_id_in_a_fresh_process_and_again_offline(
    published: str, signed_in: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = run_python(LOAD, "./tiny-pc40")
    assert "ProjClustBertForMaskedLM" in local
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN")
    assert run_python(LOAD, published) == local
    signed_in.stop()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run_python(LOAD, published) == local


def test_a_pushed_model_is_loaded_from_a_branch_and_from_a_subfolder(published: str, signed_in: LoopbackHub) -> None:
    run_cli("compress", "org/tiny-bert", "--compression", 0.6, "--output", "tiny-pc60")
    run_cli("push", "tiny-pc60", published, "--revision", "smaller")
    models = {"main": "tiny-pc40", "smaller": "tiny-pc60"}
    for revision, folder in models.items():
        model = AutoModelForMaskedLM.from_pretrained(published, revision=revision)
        assert equal_state_dicts(model, AutoModelForMaskedLM.from_pretrained(folder))
    assert "compression 0.6" in signed_in.files(published, "smaller")["README.md"].decode()
    assert "compression 0.4" in signed_in.files(published)["README.md"].decode()
    files = signed_in.repositories[published].find("main").files
    files |= {f"small/{name}": file for name, file in signed_in.repositories[published].find("smaller").files.items()}
    model = AutoModelForMaskedLM.from_pretrained(published, subfolder="small")
    assert equal_state_dicts(model, AutoModelForMaskedLM.from_pretrained("tiny-pc60"))


def test_a_standalone_folder_is_pushed_with_its_code(base: str, signed_in: LoopbackHub) -> None:
    run_cli("compress", base, "--compression", 0.4, "--standalone", "--output", "alone")
    run_cli("push", "alone", "org/alone")
    assert {name for name in signed_in.files("org/alone") if name.endswith(".py")} == set(CODE_FILES)
    assert 'from_pretrained("org/alone", trust_remote_code=True)' in card_of(signed_in, "org/alone").text


def test_push_to_hub_of_a_model_writes_its_card_and_plot(base: str, signed_in: LoopbackHub) -> None:
    model = compress(base, compression=0.4)
    model.push_to_hub("org/python", tags=["mine"])
    files = signed_in.files("org/python")
    assert {"README.md", "clusters.png", "config.json", "model.safetensors"} < set(files)
    card = card_of(signed_in, "org/python")
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", ["de"], base)
    assert {"mine", "projclust"} < set(card.data.tags)
    assert 'AutoModelForMaskedLM.from_pretrained("org/python")' in card.text
    assert equal_state_dicts(AutoModelForMaskedLM.from_pretrained("org/python"), model)


def test_push_to_hub_keeps_what_was_written_on_the_hub_and_renews_the_rest(base: str, signed_in: LoopbackHub) -> None:
    compress(base, compression=0.4).push_to_hub("org/python")
    card = card_of(signed_in, "org/python")
    card.data.license = "apache-2.0"
    card.text += "\nBeware of the dog.\n"
    push_card("org/python", str(card))
    compress(base, compression=0.6).push_to_hub("org/python")
    renewed = card_of(signed_in, "org/python")
    assert renewed.text.endswith("\nBeware of the dog.\n")
    assert renewed.data.license == "apache-2.0"
    assert "--compression 0.6" in renewed.text
    assert "--compression 0.4" not in renewed.text
    assert renewed.text.count("## Use") == 1


def test_a_card_in_the_folder_outlives_saving_and_pushing_in_one_step(base: str, signed_in: LoopbackHub) -> None:
    run_cli("compress", base, "--compression", 0.4, "--output", "mine")
    readme = Path("mine/README.md")
    readme.write_text(readme.read_text() + "\nBeware of the dog.\n")
    AutoModelForMaskedLM.from_pretrained("mine").save_pretrained("mine", push_to_hub=True, repo_id="org/mine")
    assert "Beware of the dog." in readme.read_text()
    assert "Beware of the dog." in card_of(signed_in, "org/mine").text


@pytest.mark.parametrize("card", [b"---\nlicense: [\n---\nMine.", "---\nlicense: mit\n---\nMine é.".encode("latin-1")])
def test_a_card_that_cannot_be_read_outlives_saving_and_pushing(base: str, signed_in: LoopbackHub, card: bytes) -> None:
    model = compress(base, compression=0.4)
    Path("mine").mkdir()
    Path("mine/README.md").write_bytes(card)
    with pytest.raises(ValueError, match=r"README.md cannot be read"):
        model.save_pretrained("mine", push_to_hub=True, repo_id="org/mine")
    assert Path("mine/README.md").read_bytes() == card


def test_a_card_outlives_a_push_that_fails(base: str, signed_in: LoopbackHub) -> None:
    model = compress(base, compression=0.4)
    model.save_pretrained("mine")
    Path("mine/README.md").write_bytes("\ufeff---\nlicense: mit\n---\nMine.".encode())
    signed_in.faults.append(Fault("POST", "/commit/", status=500))
    with pytest.raises(HfHubHTTPError):
        model.save_pretrained("mine", push_to_hub=True, repo_id="org/mine")
    assert Path("mine/README.md").read_text(encoding="utf-8-sig") == "---\nlicense: mit\n---\nMine."
    model.save_pretrained("mine", push_to_hub=True, repo_id="org/mine")
    card = card_of(signed_in, "org/mine")
    assert (card.data.license, card.text.startswith("Mine.")) == ("mit", True)


def test_another_base_model_in_the_same_repository_brings_its_own_licence(base: str, signed_in: LoopbackHub) -> None:
    compress(base, compression=0.4).push_to_hub("org/same")
    TINY_MODELS["bert"].build().push_to_hub("org/other")
    push_card("org/other", "---\nlicense: cc-by-nc-4.0\n---\n")
    compress("org/other", compression=0.4, token_counts="uniform").push_to_hub("org/same")
    card = card_of(signed_in, "org/same")
    assert (card.data.base_model, card.data.license, card.data.language) == ("org/other", "cc-by-nc-4.0", None)
    assert "That of the base model: cc-by-nc-4.0." in card.text


def test_the_trainer_pushes_a_card_that_has_both_its_part_and_ours(published: str, signed_in: LoopbackHub) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published)
    texts = Dataset.from_dict({"text": ["good film", "bad film"] * 8, "label": [1, 0] * 8})
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(published, num_labels=2),
        args=TrainingArguments(
            "films", num_train_epochs=1, report_to="none", push_to_hub=True, hub_model_id="org/films", use_cpu=True
        ),
        train_dataset=texts.map(lambda row: tokenizer(row["text"])),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.push_to_hub(dataset="films")
    trainer.push_to_hub(dataset="films")
    assert "clusters.png" in signed_in.files("org/films")
    card = card_of(signed_in, "org/films")
    assert (card.data.base_model, card.data.license) == (published, "mit")
    assert {"generated_from_trainer", "projclust"} < set(card.data.tags)
    assert card.data.pipeline_tag is None  # that of the base model is of another head
    assert card.data.get("base_model_relation") is None
    assert card.data.eval_results is None  # the fidelity was measured before training
    assert "- learning_rate: 5e-05" in card.text
    assert "No task was scored" not in card.text
    assert "This is how the model was compressed that was fine-tuned later" in card.text
    assert card.text.count('AutoModelForSequenceClassification.from_pretrained("org/films")') == 1
    again = AutoModelForSequenceClassification.from_pretrained("org/films")
    assert equal_state_dicts(again, trainer.model.cpu())


def test_a_model_that_may_have_been_trained_is_no_copy_of_its_base(base: str, signed_in: LoopbackHub) -> None:
    model = AutoModelForMaskedLM.from_pretrained(base)
    torch.nn.init.zeros_(model.bert.encoder.layer[0].output.dense.weight)
    compress(model, compression=0.4).push_to_hub("org/memory")
    card = card_of(signed_in, "org/memory")
    assert (card.data.base_model, card.data.get("base_model_relation")) == (base, None)
    assert f"`{base}`, as it was in memory; MODEL in the command stands for it" in card.text
    assert "hf-projclust compress MODEL --compression 0.4" in card.text
    stated = compress(model, compression=0.4, base_model=base)
    stated.push_to_hub("org/stated")
    card = card_of(signed_in, "org/stated")
    assert card.data.get("base_model_relation") == "quantized"
    assert f"hf-projclust compress {base} --compression 0.4" in card.text


def test_a_folder_that_is_spelled_like_a_model_of_the_hub_is_not_that_model(base: str) -> None:
    AutoModelForMaskedLM.from_pretrained(base).save_pretrained(base)
    model = compress(Path(base), compression=0.4, token_counts="uniform")
    assert "base_model" not in model.config.projclust["provenance"]


def test_without_a_network_the_base_is_known_and_its_licence_is_not(
    base: str, signed_in: LoopbackHub, upstream_log: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(base)
    signed_in.stop()
    made = compress(model, compression=0.4, token_counts="uniform").config.projclust["provenance"]
    assert (made["base_model"], made["inherited"]) == (base, {})
    assert "so licence and languages are unknown" in upstream_log.text


def test_a_new_head_that_was_trained_elsewhere_has_another_task(published: str, signed_in: LoopbackHub) -> None:
    AutoModelForSequenceClassification.from_pretrained(published).push_to_hub("org/head")
    card = card_of(signed_in, "org/head")
    assert (card.data.pipeline_tag, card.data.eval_results, card.data.get("base_model_relation")) == (None, None, None)
    assert (card.data.license, card.data.base_model) == ("mit", "org/tiny-bert")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_that_transformers_holds_is_pushed_without_a_card_of_ours(
    published: str, signed_in: LoopbackHub
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(published)
    model.add_adapter(LoraConfig(target_modules=["query"], r=2))
    model.push_to_hub("org/inner")
    assert "adapter_model.safetensors" in signed_in.files("org/inner")
    assert "hf_projclust" not in card_of(signed_in, "org/inner").text


def test_the_code_of_a_checkpoint_pushes_the_card_of_transformers(
    published: str, signed_in: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForMaskedLM.from_pretrained(published)
    monkeypatch.setattr("hf_projclust.modeling_projclust.ProjClustModelMixin.write_card", None)
    model.push_to_hub("org/bare")
    assert "More Information Needed" in card_of(signed_in, "org/bare").text


def test_the_trainer_of_a_dense_model_writes_the_card_that_it_always_wrote(base: str, signed_in: LoopbackHub) -> None:
    compress(base, compression=0.4).save_pretrained("left")
    trainer = Trainer(
        model=AutoModelForMaskedLM.from_pretrained(base),
        args=TrainingArguments("dense", report_to="none", push_to_hub=True, hub_model_id="org/dense", use_cpu=True),
    )
    Path("dense").mkdir(exist_ok=True)
    Path("dense/config.json").write_text(Path("left/config.json").read_text())
    trainer.create_model_card()
    assert "projclust" not in Path("dense/README.md").read_text()
    trainer.push_to_hub()
    assert "projclust" not in signed_in.files("org/dense")["README.md"].decode()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_on_top_is_pushed_and_loaded_by_its_id(published: str, signed_in: LoopbackHub) -> None:
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(published, num_labels=2)
    adapted = get_peft_model(model, LoraConfig(task_type=TaskType.TOKEN_CLS, target_modules=["query"], r=2)).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    adapted.push_to_hub("org/adapter")
    assert "model.safetensors" not in signed_in.files("org/adapter")
    again = AutoPeftModelForTokenClassification.from_pretrained("org/adapter", num_labels=2)
    assert type(again.get_base_model()).__name__ == "ProjClustBertForTokenClassification"
    inputs = AutoTokenizer.from_pretrained(published)("good film", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, adapted(**inputs).logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_card_outlives_the_update_that_peft_makes(published: str) -> None:
    before = ModelCard.load(Path("tiny-pc40/README.md"))
    model = AutoModel.from_pretrained(published)
    get_peft_model(model, LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, target_modules=["query"])).save_pretrained(
        "tiny-pc40"
    )
    after = ModelCard.load(Path("tiny-pc40/README.md"))
    assert after.data.library_name == "peft"
    assert "projclust" in after.data.tags
    assert before.text.strip() in after.text
