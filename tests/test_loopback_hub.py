"""The loopback Hub keeps the promises of the real one, as far as the real client and Transformers can tell."""

import os
import re
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_MODELS, equal_state_dicts, run_python, with_validation
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import Fault, LoopbackHub
from transformers import AutoModel, BertModel

MODEL = "org/tiny"
CARD = "---\nlicense: mit\nlanguage: en\nbase_model: org/base\ntags: [projclust]\n---\n# Tiny\n"
CONTENTS = {
    "README.md": CARD.encode(),
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(range(256)) * 500,
    "plots/curve.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "1_Pooling/config.json": b"{}",
    "empty.txt": b"",
}
LARGE = {"model.safetensors", "plots/curve.png"}


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_alice")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "sent", CONTENTS)


@pytest.fixture
def pushed(api: HfApi, folder: Path) -> HfApi:
    api.create_repo(MODEL)
    api.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first")
    return api


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: str | Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


def sent(hub: LoopbackHub, method: str, pattern: str) -> int:
    return sum(method == seen and re.search(pattern, path) is not None for seen, path in hub.requests)


# What goes in and comes out


def test_this_session_can_reach_no_other_hub(hub: LoopbackHub) -> None:
    assert hub.url == constants.ENDPOINT
    assert os.environ["HF_HOME"] == constants.HF_HOME
    assert "HF_TOKEN" not in os.environ
    assert run_python("from huggingface_hub import constants; print(constants.ENDPOINT)").strip() == hub.url
    with pytest.raises(Exception, match="404"):
        HfApi(endpoint="https://huggingface.co").model_info("google-bert/bert-base-uncased")
    assert ("CONNECT", "huggingface.co:443") in hub.requests


def test_a_model_that_was_not_pushed_is_not_found(hub: LoopbackHub) -> None:
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("google-bert/bert-base-uncased", "config.json")
    with pytest.raises(OSError, match="is not a local folder and is not a valid model identifier"):
        AutoModel.from_pretrained("google-bert/bert-base-uncased")
    assert hub.requests


def test_a_folder_comes_back_byte_for_byte(pushed: HfApi, hub: LoopbackHub, tmp_path: Path) -> None:
    files = hub.files(MODEL)
    assert {name: files[name] for name in CONTENTS} == CONTENTS
    assert files.keys() - CONTENTS.keys() == {".gitattributes"}
    tree = {entry.path: entry for entry in pushed.list_repo_tree(MODEL, recursive=True)}
    assert {path for path, entry in tree.items() if getattr(entry, "lfs", None)} == LARGE
    assert [entry.path for entry in pushed.list_repo_tree(MODEL, "1_Pooling")] == ["1_Pooling/config.json"]
    known = pushed.get_paths_info(MODEL, ["config.json", "1_Pooling", "nothing"])
    assert [(entry.path, getattr(entry, "size", None)) for entry in known] == [("config.json", 22), ("1_Pooling", None)]
    assert read(snapshot_download(MODEL, cache_dir=tmp_path / "a")).items() >= CONTENTS.items()
    for name, content in CONTENTS.items():
        assert Path(hf_hub_download(MODEL, name, cache_dir=tmp_path / "b")).read_bytes() == content
    config = hf_hub_download(MODEL, "config.json", subfolder="1_Pooling", cache_dir=tmp_path / "b")
    assert Path(config).read_bytes() == b"{}"


def test_what_was_downloaded_is_there_without_the_hub(pushed: HfApi, hub: LoopbackHub, tmp_path: Path) -> None:
    there = snapshot_download(MODEL, cache_dir=tmp_path)
    asked = len(hub.requests)
    assert snapshot_download(MODEL, cache_dir=tmp_path, local_files_only=True) == there
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(MODEL, "config.json", cache_dir=tmp_path / "empty", local_files_only=True)
    assert len(hub.requests) == asked
    hub.stop()
    assert hf_hub_download(MODEL, "config.json", cache_dir=tmp_path).startswith(there)
    hub.start()
    assert pushed.repo_exists(MODEL)


def test_large_files_go_by_an_address_that_sees_no_token(pushed: HfApi, hub: LoopbackHub, tmp_path: Path) -> None:
    pushed.hf_hub_download(MODEL, "model.safetensors", cache_dir=tmp_path)
    seen = list(zip(hub.requests, hub.authorizations, strict=True))
    stored = [token for (_, path), token in seen if path.startswith(("/upload/", "/download/"))]
    assert stored == [None] * 3  # two files in, one out
    assert {token for (_, path), token in seen if path.startswith("/api/")} == {"hf_alice"}


def test_an_unchanged_file_is_neither_sent_nor_committed_again(pushed: HfApi, hub: LoopbackHub, folder: Path) -> None:
    uploads = sent(hub, "PUT", "^/upload/")
    assert uploads == len(LARGE)
    pushed.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="again")
    assert [made.title for made in hub.commits(MODEL)] == ["first", "initial commit"]
    (folder / "config.json").write_bytes(b'{"model_type": "gpt2"}')
    pushed.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="second")
    assert [made.title for made in hub.commits(MODEL)] == ["second", "first", "initial commit"]
    assert hub.files(MODEL)["config.json"] == b'{"model_type": "gpt2"}'
    assert sent(hub, "PUT", "^/upload/") == uploads
    assert sent(hub, "POST", "/commit/main$") == 2


def test_each_revision_keeps_its_files(pushed: HfApi, hub: LoopbackHub) -> None:
    first = hub.commits(MODEL)[0].id
    assert re.fullmatch("[0-9a-f]{40}", first)
    pushed.create_branch(MODEL, branch="try/it")
    with pytest.raises(HfHubHTTPError, match="409"):
        pushed.create_branch(MODEL, branch="try/it")
    pushed.create_branch(MODEL, branch="try/it", exist_ok=True)
    pushed.upload_file(path_or_fileobj=b"new", path_in_repo="a.txt", repo_id=MODEL, revision="try/it")
    pushed.delete_file("config.json", MODEL)
    pushed.delete_folder("plots", MODEL)
    pushed.create_tag(MODEL, tag="v1", revision=first)
    assert hub.files(MODEL, "try/it")["a.txt"] == b"new"
    assert "config.json" in hub.files(MODEL, "try/it")
    assert not {"a.txt", "config.json", "plots/curve.png"} & hub.files(MODEL).keys()
    for revision in ("v1", first, first[:7]):
        assert pushed.model_info(MODEL, revision=revision).sha == first
    assert [made.title for made in pushed.list_repo_commits(MODEL, revision="v1")] == ["first", "initial commit"]
    references = pushed.list_repo_refs(MODEL)
    assert [branch.name for branch in references.branches] == ["main", "try/it"]
    assert [(tag.name, tag.target_commit) for tag in references.tags] == [("v1", first)]


def test_a_pull_request_leaves_main_alone(pushed: HfApi, hub: LoopbackHub) -> None:
    hub.users["hf_bob"] = "bob"  # who may not write in org, and may open a pull request all the same
    content = b"\0" * 9
    made = pushed.upload_file(
        path_or_fileobj=content, path_in_repo="b.bin", repo_id=MODEL, create_pr=True, token="hf_bob"
    )
    assert made.pr_revision == "refs/pr/1"
    assert hub.files(MODEL, "refs/pr/1") == hub.files(MODEL) | {"b.bin": content}
    assert "b.bin" not in hub.files(MODEL)
    pushed.upload_file(path_or_fileobj=b"2", path_in_repo="c.txt", repo_id=MODEL, revision="refs/pr/1")
    assert Path(hf_hub_download(MODEL, "c.txt", revision="refs/pr/1")).read_bytes() == b"2"
    references = pushed.list_repo_refs(MODEL, include_pull_requests=True)
    assert [pull.ref for pull in references.pull_requests] == ["refs/pr/1"]


def test_a_commit_on_what_has_moved_on_is_refused(pushed: HfApi, hub: LoopbackHub) -> None:
    old = hub.commits(MODEL)[-1].id
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        pushed.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=MODEL, parent_commit=old)


def test_a_large_file_that_was_not_sent_cannot_be_committed(api: HfApi) -> None:
    api.create_repo(MODEL)
    addition = CommitOperationAdd("model.bin", b"weights")
    addition._upload_mode = "lfs"
    addition._is_uploaded = True
    with pytest.raises(HfHubHTTPError, match="points to a large file that was not sent"):
        api.create_commit(MODEL, [addition], commit_message="nothing behind it")


# Model cards


def test_the_card_is_what_the_hub_knows_of_a_model(pushed: HfApi) -> None:
    info = pushed.model_info(MODEL, files_metadata=True)
    assert {"license:mit", "base_model:org/base", "projclust", "en", "safetensors"} <= set(info.tags)
    assert info.card_data.license == "mit"
    assert {file.rfilename: file.size for file in info.siblings}["model.safetensors"] == 128_000
    assert ModelCard.load(MODEL).data.base_model == "org/base"


@with_validation
def test_a_card_is_pushed(signed_in: LoopbackHub, api: HfApi) -> None:
    api.create_repo(MODEL)
    ModelCard(CARD).push_to_hub(MODEL)
    assert signed_in.files(MODEL)["README.md"] == str(ModelCard(CARD)).encode()
    with pytest.raises(ValueError, match='"base_model" with value "/home/user/model" is not valid'):
        ModelCard(CARD.replace("org/base", "/home/user/model")).push_to_hub(MODEL)
    assert len(signed_in.commits(MODEL)) == 2


BAD_CARDS = {
    "license: proprietary": '"license" must be one of',
    "license: none of these": '"license" must be one of',
    "language: english": '"language" with value "english" is not valid',
    "language: [en, no]": r'"language\[1\]" with value "False" is not valid',
    "base_model: /home/user/model": '"base_model" with value "/home/user/model" is not valid',
    "base_model: [org/a, ./b]": r'"base_model\[1\]" with value "./b" is not valid',
    "base_model: org/a--b": "is not valid",
    "base_model: org/a..b": "is not valid",
    "tags: projclust": '"tags" must be an array',
    "tags: [1]": r'"tags\[0\]" must be a string',
    "pipeline_tag: guessing": '"pipeline_tag" must be one of',
    "library_name: [a]": '"library_name" must be a string',
    "model-index: [{name: a}]": r'"model-index\[0\].results" is required',
    "model-index: [{name: a, results: [{metrics: [{type: f1}]}]}]": r"task.type.*dataset.type.*metrics\[0\].value",
    "model-index: [{name: a, results: [{dataset: {type: a b, name: c}}]}]": "fails to match the required pattern",
    "license: [": "YAML Metadata Error",
    "- a list": "must be of type object",
}


@pytest.mark.parametrize(("metadata", "message"), BAD_CARDS.items(), ids=BAD_CARDS)
def test_a_bad_card_is_refused_before_anything_is_sent(
    hub: LoopbackHub, api: HfApi, metadata: str, message: str
) -> None:
    api.create_repo(MODEL)
    content = f"---\n{metadata}\n---\ntext\n"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        api.upload_file(path_or_fileobj=content.encode(), path_in_repo="README.md", repo_id=MODEL)
    assert sent(hub, "POST", "/preupload/|/commit/") == 0


GOOD_CARDS = [
    CARD,
    "---\nlicense: other\nlicense_name: mine\nlanguage: [en, zh-Hant, code]\nbase_model: [a, org/b.c-d]\n---\n",
    "---\nlibrary_name: transformers\npipeline_tag: fill-mask\ndatasets: [org/data]\nmodel-index:\n- name: a\n"
    "  results:\n  - {task: {type: fill-mask}, dataset: {type: org/data, name: Data}, "
    "metrics: [{type: f1, value: 0}]}\n"
    "---\ntext\n",
]


@pytest.mark.parametrize("content", GOOD_CARDS)
def test_a_good_card_is_taken(hub: LoopbackHub, api: HfApi, content: str) -> None:
    api.create_repo(MODEL)
    api.upload_file(path_or_fileobj=content.encode(), path_in_repo="README.md", repo_id=MODEL)
    assert hub.files(MODEL)["README.md"] == content.encode()


@pytest.mark.parametrize(
    ("content", "message"), [("no metadata", "empty or missing yaml metadata"), ("---\nlicense: other\n---\n", "name")]
)
def test_a_doubtful_card_is_taken_with_a_warning(hub: LoopbackHub, api: HfApi, content: str, message: str) -> None:
    api.create_repo(MODEL)
    with pytest.warns(UserWarning, match=message):
        api.upload_file(path_or_fileobj=content.encode(), path_in_repo="README.md", repo_id=MODEL)
    assert hub.files(MODEL)["README.md"] == content.encode()


# Who may do what, and what is not there


def test_who_am_i(api: HfApi) -> None:
    known = api.whoami()
    assert (known["name"], [organisation["name"] for organisation in known["orgs"]]) == ("alice", ["org"])
    assert api.create_repo("mine").repo_id == "alice/mine"


def test_creating_what_is_there(api: HfApi) -> None:
    api.create_repo(MODEL)
    with pytest.raises(HfHubHTTPError, match="409.*\n*.*already created"):
        api.create_repo(MODEL)
    assert api.create_repo(MODEL, exist_ok=True).repo_id == MODEL
    api.delete_repo(MODEL)
    assert not api.repo_exists(MODEL)


def test_a_wrong_token_is_refused(pushed: HfApi, hub: LoopbackHub) -> None:
    wrong = {"token": "hf_wrong"}
    with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as caught:
        pushed.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=MODEL, **wrong)
    assert caught.value.response.status_code == 401
    assert not isinstance(caught.value, RepositoryNotFoundError)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        pushed.create_repo("org/other", **wrong)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        pushed.whoami(**wrong)
    assert "hf_wrong" in hub.authorizations
    assert "x" not in hub.files(MODEL)


def test_nothing_is_written_without_a_token(pushed: HfApi, hub: LoopbackHub) -> None:
    with pytest.raises(RepositoryNotFoundError, match="401"):
        pushed.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=MODEL, token=False)
    with pytest.raises(HfHubHTTPError, match="401"):
        pushed.create_repo("org/other", token=False)
    assert hub.repositories.keys() == {MODEL}


def test_a_stranger_cannot_write_to_an_organisation(pushed: HfApi, hub: LoopbackHub) -> None:
    hub.users["hf_bob"] = "bob"
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        pushed.create_repo("org/other", token="hf_bob")
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        pushed.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=MODEL, token="hf_bob")
    assert pushed.create_repo(MODEL, exist_ok=True, token="hf_bob").repo_id == MODEL


def test_a_private_model_is_there_for_its_owners_alone(api: HfApi, hub: LoopbackHub) -> None:
    hub.users["hf_bob"] = "bob"
    api.create_repo(MODEL, private=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=MODEL)
    assert api.model_info(MODEL).private
    for token in (False, "hf_bob"):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(MODEL, "config.json", token=token)
        with pytest.raises(RepositoryNotFoundError):
            snapshot_download(MODEL, token=token)
    assert Path(hf_hub_download(MODEL, "config.json", token="hf_alice")).read_bytes() == b"{}"


def test_what_is_missing_is_named(pushed: HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError, match="404"):
        hf_hub_download("org/other", "config.json")
    with pytest.raises(RevisionNotFoundError, match="404"):
        hf_hub_download(MODEL, "config.json", revision="v9")
    with pytest.raises(EntryNotFoundError, match="404"):
        list(pushed.list_repo_tree(MODEL, "2_Pooling"))
    with pytest.raises(EntryNotFoundError, match="404") as caught:
        hf_hub_download(MODEL, "tokenizer.json")
    assert caught.value.response.headers["X-Repo-Commit"] == pushed.model_info(MODEL).sha
    with pytest.raises(RepositoryNotFoundError):
        pushed.dataset_info("org/data")


# Faults


def test_an_upload_that_fails_once_is_sent_again(api: HfApi, hub: LoopbackHub, folder: Path) -> None:
    api.create_repo(MODEL)
    hub.faults.append(Fault("PUT", "^/upload/", status=500))
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert sent(hub, "PUT", "^/upload/") == len(LARGE) + 1
    assert hub.files(MODEL).items() >= CONTENTS.items()


def test_a_commit_that_fails_leaves_nothing(api: HfApi, hub: LoopbackHub, folder: Path) -> None:
    api.create_repo(MODEL)
    hub.faults.append(Fault("POST", "/commit/", status=500))
    with pytest.raises(HfHubHTTPError, match="500"):
        api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert hub.files(MODEL).keys() == {".gitattributes"}
    api.upload_folder(repo_id=MODEL, folder_path=folder)
    assert sent(hub, "PUT", "^/upload/") == len(LARGE)  # which were kept from the first attempt
    assert hub.files(MODEL).items() >= CONTENTS.items()


def test_an_upload_whose_connection_breaks_is_sent_again(api: HfApi, hub: LoopbackHub) -> None:
    api.create_repo(MODEL)
    hub.faults.append(Fault("PUT", "^/upload/", drop=True))
    content = b"\1" * 3_000_000
    api.upload_file(path_or_fileobj=content, path_in_repo="model.bin", repo_id=MODEL)
    assert hub.files(MODEL)["model.bin"] == content
    assert sent(hub, "PUT", "^/upload/") == 2


def test_a_download_whose_connection_breaks_goes_on(pushed: HfApi, hub: LoopbackHub) -> None:
    hub.faults.append(Fault("GET", "^/download/", drop=True))
    assert Path(hf_hub_download(MODEL, "model.safetensors")).read_bytes() == CONTENTS["model.safetensors"]
    assert sent(hub, "GET", "^/download/") == 2


def test_a_slow_answer_is_waited_for_or_given_up(pushed: HfApi, hub: LoopbackHub) -> None:
    hub.faults.append(Fault("GET", f"^/api/models/{MODEL}$", delay_seconds=0.3, times=2))
    began = time.monotonic()
    assert pushed.model_info(MODEL).id == MODEL
    assert time.monotonic() - began >= 0.3
    with pytest.raises(Exception, match="timed out"):  # the class is that of the client's own library for HTTP
        pushed.model_info(MODEL, timeout=0.1)
    assert pushed.model_info(MODEL, timeout=0.1).id == MODEL


def test_a_fault_befalls_what_it_names_as_often_as_it_says(pushed: HfApi, hub: LoopbackHub) -> None:
    hub.faults.append(Fault("GET", f"^/api/models/{MODEL}$", status=503, times=2))
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="503"):
            pushed.model_info(MODEL)
        assert pushed.model_info(MODEL, revision="main").id == MODEL
    assert pushed.model_info(MODEL).id == MODEL


def test_a_hub_in_trouble_leaves_the_cache_in_use(pushed: HfApi, hub: LoopbackHub) -> None:
    there = hf_hub_download(MODEL, "config.json")
    pushed.delete_file("config.json", MODEL)
    hub.faults.append(Fault("HEAD", "config.json$", status=503))
    assert hf_hub_download(MODEL, "config.json") == there
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(MODEL, "config.json")


# Through Transformers


def test_a_model_is_pushed_and_loaded(signed_in: LoopbackHub) -> None:
    torch.manual_seed(0)
    model = BertModel(TINY_MODELS["bert"].config).eval()
    model.push_to_hub(MODEL)
    assert {"config.json", "model.safetensors"} <= signed_in.files(MODEL).keys()
    loaded = AutoModel.from_pretrained(MODEL)
    assert equal_state_dicts(model, loaded)
    assert sent(signed_in, "GET", "^/download/") == 1
    sizes = HfApi().get_safetensors_metadata(MODEL).parameter_count  # by ranges of the file
    assert sizes == {"F32": sum(tensor.numel() for tensor in model.state_dict().values())}
    asked = len(signed_in.requests)
    assert equal_state_dicts(model, AutoModel.from_pretrained(MODEL, local_files_only=True))
    assert len(signed_in.requests) == asked


def test_the_hub_of_a_block_is_gone_after_it(hub: LoopbackHub) -> None:
    with LoopbackHub() as other:
        api = HfApi(endpoint=other.url)
        assert not api.repo_exists(MODEL)
        assert other.url != hub.url
    with pytest.raises(Exception, match="(?i)connect|refused|disconnected"):
        api.model_info(MODEL)
