"""Pushing a folder: what goes along, what stays, and what each failure says, with nothing lost and no token told."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_MODELS, run_cli
from huggingface_hub import EvalResult, HfApi, ModelCard, constants
from loopback_hub import Fault, LoopbackHub
from transformers import AutoModelForMaskedLM

from hf_projclust.cards import write_card
from hf_projclust.publishing import push_folder

pytestmark = pytest.mark.usefixtures("signed_in")
TOKEN = "hf_alice"


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compressed model with its tokenizer, in a folder of the current one."""
    monkeypatch.chdir(tmp_path)
    TINY_MODELS["bert"].compressed().save_pretrained("pc40")
    tokenizer.save_pretrained("pc40")
    return tmp_path / "pc40"


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_push_says_what_was_sent_and_where_and_leaves_the_folder_alone(folder: Path, hub: LoopbackHub) -> None:
    before = content(folder)
    output = run_cli("push", folder, "org/pc40", "--commit-message", "First")
    assert f"{hub.url}/org/pc40/commit/{hub.commits('org/pc40')[0].id}" in output
    assert "Pushing README.md, clusters.png, config.json, model.safetensors, tokenizer.json" in output
    assert content(folder) == before
    files = hub.files("org/pc40")
    assert {name: hashlib.sha256(files[name]).hexdigest() for name in before} == before
    assert set(files) - set(before) == {"README.md", "clusters.png", ".gitattributes"}
    assert hub.commits("org/pc40")[0].title == "First"
    assert not hub.repositories["org/pc40"].private
    assert TOKEN not in output


def test_what_does_not_belong_to_a_model_stays_at_home(folder: Path, hub: LoopbackHub) -> None:
    for name in (
        ".env",
        "training_args.bin",
        "optimizer.pt",
        "runs.log",
        "checkpoint-5/model.safetensors",
        ".git/config",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("secret")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    (folder / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    run_cli("push", folder, "org/pc40")
    sent = hub.files("org/pc40")
    assert not [name for name, text in sent.items() if text == b"secret"]
    assert "1_Pooling/config.json" in sent


def test_private_pull_request_and_branch(folder: Path, hub: LoopbackHub) -> None:
    run_cli("push", folder, "org/pc40", "--private", "--revision", "next")
    assert hub.repositories["org/pc40"].private
    assert "model.safetensors" in hub.files("org/pc40", "next")
    assert set(hub.files("org/pc40")) == {".gitattributes"}
    output = run_cli("push", folder, "org/pc40", "--create-pr")
    assert f"{hub.url}/org/pc40/discussions/1" in output
    assert set(hub.files("org/pc40")) == {".gitattributes"}
    assert "model.safetensors" in hub.files("org/pc40", "refs/pr/1")


def test_weights_that_the_folder_has_no_more_are_deleted(folder: Path, hub: LoopbackHub) -> None:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="8KB")
    run_cli("push", folder, "org/pc40")
    shards = {name for name in hub.files("org/pc40") if "safetensors" in name}
    assert len(shards) > 2
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    run_cli("push", folder, "org/pc40")
    assert {name for name in hub.files("org/pc40") if "safetensors" in name} == {"model.safetensors"}
    HfApi().create_branch("org/pc40", branch="old", revision=hub.commits("org/pc40")[1].id)
    run_cli("push", folder, "org/pc40", "--revision", "old")
    assert {name for name in hub.files("org/pc40", "old") if "safetensors" in name} == {"model.safetensors"}
    assert len(hub.commits("org/pc40")) == 3  # one of them made the repository


def test_weights_elsewhere_in_the_repository_stay(folder: Path, hub: LoopbackHub) -> None:
    api = HfApi()
    api.create_repo("org/pc40")
    others = ("fp16/model.safetensors", "onnx/decoder.safetensors", "extra.safetensors", "small/pytorch_model.bin")
    for name in (*others, "pytorch_model.bin", "model.fp16.safetensors"):
        api.upload_file(path_or_fileobj=b"weights", path_in_repo=name, repo_id="org/pc40")
    run_cli("push", folder, "org/pc40")
    assert set(others) < set(hub.files("org/pc40"))
    assert not {"pytorch_model.bin", "model.fp16.safetensors"} & set(hub.files("org/pc40"))


def test_a_repository_that_holds_an_adapter_is_refused_and_left_alone(folder: Path, hub: LoopbackHub) -> None:
    api = HfApi()
    api.create_repo("org/adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="org/adapter")
    before = hub.files("org/adapter")
    assert "holds a PEFT adapter" in run_cli("push", folder, "org/adapter", code=1)
    assert hub.files("org/adapter") == before


def test_a_public_repository_is_not_pushed_to_as_a_private_one(folder: Path, hub: LoopbackHub) -> None:
    HfApi().create_repo("org/pc40", private=False)
    assert "is public; expected a private one" in run_cli("push", folder, "org/pc40", "--private", code=1)
    assert set(hub.files("org/pc40")) == {".gitattributes"}


def test_a_repository_without_an_owner_is_that_of_the_user(folder: Path, hub: LoopbackHub) -> None:
    run_cli("push", folder, "mine")
    card = hub.files("alice/mine")["README.md"].decode()
    assert 'from_pretrained("alice/mine")' in card


def test_the_name_of_the_folder_is_not_published(folder: Path, hub: LoopbackHub) -> None:
    write_card(folder, existing=b"---\nmodel-index: [{name: pc40, results: []}]\n---\n")
    card = ModelCard.load(folder / "README.md")
    card.data.eval_results = [EvalResult("sts", "stsb", "STS-B", "spearman", 0.5)]
    card.data.model_name = "pc40"
    card.save(folder / "README.md")
    assert "# pc40" in card.text
    run_cli("push", folder, "org/better")
    text = hub.files("org/better")["README.md"].decode()
    assert "pc40" not in text
    assert "# better" in text
    assert "- name: better" in text


def test_a_push_that_failed_is_repeated_and_sends_nothing_twice(folder: Path, hub: LoopbackHub) -> None:
    before = content(folder)
    for fault in (Fault("POST", "/commit/", status=500), Fault("POST", "/commit/", drop=True)):
        hub.faults.append(fault)
        output = run_cli("push", folder, "org/pc40", code=1)
        assert output.count("Error:") == 1
        assert "did not end" in output
        assert "run the same command again later" in output
        assert content(folder) == before
        assert set(hub.files("org/pc40")) == {".gitattributes"}
    run_cli("push", folder, "org/pc40")
    assert "model.safetensors" in hub.files("org/pc40")
    uploads = [path for method, path in hub.requests if method == "PUT"]
    assert len(uploads) == 2  # weights and plot
    commits = hub.commits("org/pc40")
    run_cli("push", folder, "org/pc40")
    assert hub.commits("org/pc40") == commits


def test_a_dropped_upload_and_a_slow_answer_are_waited_for(folder: Path, hub: LoopbackHub) -> None:
    hub.faults += [Fault("PUT", "", drop=True), Fault("POST", "/commit/", delay_seconds=1.5)]
    run_cli("push", folder, "org/pc40")
    assert hub.files("org/pc40")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def state(folder: Path, metadata: str) -> None:
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n\n# Mine\n")


BAD = [
    (lambda folder, hub: None, ["no/such/repository"], "is not the id of one on the Hub"),
    (lambda folder, hub: None, ["org/pc 40"], "is not the id of one on the Hub"),
    (lambda folder, hub: None, ["org/pc40", "--token", "hf_wrong"], "refuses the token for 'org/pc40'"),
    (lambda folder, hub: None, ["org/pc40", "--token", "hf_alice\x07\n"], "characters that no token has"),
    (lambda folder, hub: None, ["org/pc40", "--token", ""], "there is no token"),
    (lambda folder, hub: None, ["org/pc40", "--token", "hf_a b"], "characters that no token has"),
    (lambda folder, hub: None, ["org/pc40", "--revision", "0" * 40], "is a commit; expected the name of a branch"),
    (lambda folder, hub: (folder / "vocab.txt").symlink_to("gone"), ["org/pc40"], "leads nowhere"),
    (
        lambda folder, hub: (folder / "README.md").write_bytes("é".encode("latin-1")),
        ["org/pc40"],
        "expected text in UTF-8",
    ),
    (lambda folder, hub: None, ["strangers/pc40"], "refuses the token for 'strangers/pc40'"),
    (lambda folder, hub: hub.stop(), ["org/pc40"], "did not end"),
    (lambda folder, hub: state(folder, "license: ["), ["org/pc40"], "cannot be read"),
    (lambda folder, hub: shutil.rmtree(folder), ["org/pc40"], "is not a folder"),
    (lambda folder, hub: (folder / "config.json").unlink(), ["org/pc40"], "has no config.json"),
    (lambda folder, hub: (folder / "model.safetensors").unlink(), ["org/pc40"], "has no readable weights"),
    (lambda folder, hub: TINY_MODELS["bert"].build().save_pretrained(folder), ["org/pc40"], "holds a dense model"),
]


@pytest.mark.parametrize(("damage", "arguments", "message"), BAD)
def test_mistakes_get_one_message_without_the_token_and_make_no_repository(
    folder: Path, hub: LoopbackHub, damage: Any, arguments: list[str], message: str
) -> None:
    damage(folder, hub)
    before = content(folder) if folder.exists() else {}
    output = run_cli("push", folder, *arguments, code=1)
    assert output.count("Error:") == 1
    assert message in output
    assert "Traceback" not in output
    assert "hf_" not in output.replace("hf_projclust", "")
    assert not hub.repositories
    assert (content(folder) if folder.exists() else {}) == before


@pytest.mark.parametrize(
    "metadata", ["license: mine", "language: english", "pipeline_tag: guessing", "base_model: /a/b"]
)
def test_metadata_that_the_hub_refuses_are_named_and_nothing_is_sent(
    folder: Path, hub: LoopbackHub, metadata: str
) -> None:
    state(folder, metadata)
    output = run_cli("push", folder, "org/pc40", code=1)
    assert output.count("Error: ") == 1
    assert "the Hub refuses the card" in output
    assert metadata.partition(":")[0] in output
    assert "Mend the lines at the top of" in output
    assert set(hub.files("org/pc40")) == {".gitattributes"}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "README.md"])
def test_a_path_of_the_home_folder_is_not_published(folder: Path, hub: LoopbackHub, name: str) -> None:
    path = json.dumps(f"{Path.home()}/secret/model")
    content = (
        json.dumps({"name_or_path": f"{Path.home()}/x"}) if name.endswith("json") else f"---\nlicense: mit\n---\n{path}"
    )
    (folder / name).write_text(content)
    assert f"{name} names a path in" in run_cli("push", folder, "org/pc40", code=1)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("PUT", "", status=403, times=9), "the Hub refuses the token"),
        (Fault("PUT", "", status=400, times=9), "the Hub refuses the push"),
        (Fault("POST", "/commit/", status=429), "did not end"),
        (Fault("POST", "/commit/", status=413), "the Hub refuses the push"),
        (Fault("POST", "/repos/create", status=503), "did not end"),
    ],
)
def test_what_the_hub_answers_decides_what_is_said(folder: Path, hub: LoopbackHub, fault: Fault, message: str) -> None:
    hub.faults.append(fault)
    output = run_cli("push", folder, "org/pc40", code=1)
    assert message in output
    assert "(None)" not in output


def test_without_a_token_nothing_is_asked_of_the_hub(
    folder: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    output = run_cli("push", folder, "org/pc40", code=1)
    assert "there is no token for the Hub" in output
    assert "hf auth login" in output
    assert not hub.requests


def test_offline_the_error_says_so(folder: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    output = run_cli("push", folder, "org/pc40", code=1)
    assert "offline" in output.lower()
    assert "run the same command again" in output


def test_a_pull_request_is_added_to_and_one_that_is_not_there_is_named(folder: Path, hub: LoopbackHub) -> None:
    run_cli("push", folder, "org/pc40", "--create-pr")
    (folder / "generation_config.json").write_text("{}")
    run_cli("push", folder, "org/pc40", "--revision", "refs/pr/1")
    assert "generation_config.json" in hub.files("org/pc40", "refs/pr/1")
    output = run_cli("push", folder, "org/pc40", "--revision", "refs/pr/7", code=1)
    assert "the Hub refuses the push to 'org/pc40'" in output
    assert "Revision Not Found" in output


def test_the_function_gives_the_commit_and_raises_what_the_error_is(folder: Path, hub: LoopbackHub) -> None:
    commit = push_folder(folder, "org/pc40", token=TOKEN)
    assert commit.oid == hub.commits("org/pc40")[0].id
    with pytest.raises(PermissionError):
        push_folder(folder, "org/pc40", token="hf_wrong")
    hub.stop()
    with pytest.raises(ConnectionError):
        push_folder(folder, "org/pc40", token=TOKEN)


def test_an_unknown_licence_is_said_when_it_is_pushed(folder: Path, upstream_log: pytest.LogCaptureFixture) -> None:
    push_folder(folder, "org/pc40", token=TOKEN)
    assert "The card says that the licence is unknown." in upstream_log.text
    upstream_log.clear()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    push_folder(folder, "org/pc40", token=TOKEN)
    assert "licence" not in upstream_log.text
