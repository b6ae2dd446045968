"""Damaged folders, of floating numbers, in few bits and in shards: one error, which names what is damaged.

Every way of Transformers to load them goes through the same checks; the last tests try the other ways.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, VOCAB_SIZE, WIDTH, run_python, save
from damage import TABLE, Damage, config, content, edit_json, factor, index, section, shard, table, tensors
from few_bits import packed_model
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertForMaskedLM, Gemma3Config, Qwen2MoeConfig

from hf_projclust import ProjClustCheckpointError
from hf_projclust.configuration_projclust import projclust_config_class

NAN, INFINITY = float("nan"), float("inf")
Case = tuple[Damage, str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole folder of each kind."""
    above = tmp_path_factory.mktemp("whole")
    model = TINY_MODELS["bert"].compressed(rank=5, compression=None)
    model.save_pretrained(above / "sharded", max_shard_size="4KB")
    packed = packed_model("bert", ratio=None, rank=8, coefficient_bits=4)
    return {
        "float": save(model, above / "float"),
        "packed": save(packed, above / "packed"),
        "sharded": above / "sharded",
    }


def damaged(whole: Path, damage: Damage, folder: Path) -> Path:
    shutil.copytree(whole, folder / "out")
    damage(folder / "out")
    return folder / "out"


def refused(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(ProjClustCheckpointError, match=message):
        AutoModelForMaskedLM.from_pretrained(folder, **options)


def put(value: float, place: int = 7) -> Any:
    """A function that puts a number in a place of a tensor."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[place] = value
        return tensor

    return change


FIELDS: dict[str, Case] = {
    "section is a list": (config(projclust=[]), r"projclust=\[\]; expected a dictionary"),
    "section is a text": (config(projclust="embedding"), "projclust='embedding'; expected a dictionary"),
    "section is a number": (config(projclust=1e400), "projclust=inf; expected a dictionary"),
    "version is true": (section(lambda s: s.update(format_version=True)), "format_version=True; this hf_projclust"),
    "version is 1.0": (section(lambda s: s.update(format_version=1.0)), "format_version=1.0; this hf_projclust reads"),
    "version is a text": (section(lambda s: s.update(format_version="1")), "format_version='1'; this hf_projclust"),
    "version is of few bits": (section(lambda s: s.update(format_version=2)), "version=2 and tables of format 1"),
    "version is below": (section(lambda s: s.update(format_version=-1)), "format_version=-1; this hf_projclust"),
    "version is a list": (section(lambda s: s.update(format_version=[1])), r"format_version=\[1\]; this hf_projclust"),
    "embedding is null": (section(lambda s: s.update(embedding=None)), "expected a dictionary with the shapes"),
    "embedding is a list": (section(lambda s: s.update(embedding=[1])), "expected a dictionary with the shapes"),
    "head is a list": (section(lambda s: s.update(head=[1])), r"is described by \[1\]; expected"),
    "head is empty": (section(lambda s: s.update(head={})), r"is described by \{\}; expected"),
    "head beside a tied one": (
        section(lambda s: s.update(head=s["embedding"])),
        "ties its head to the vocabulary table, and describes a factored head",
    ),
    "tied_head is a text": (section(lambda s: s.update(tied_head="false")), "tied_head='false'; expected true or"),
    "tied_head is 0": (section(lambda s: s.update(tied_head=0)), "tied_head=0; expected true or false"),
    "tied_head is false": (
        section(lambda s: s.update(tied_head=False)),
        "has no cls.predictions.decoder.weight; expected every weight of the ProjClustBertForMaskedLM that it was",
    ),
    "dim is a text": (table(dim="16"), "dim='16'.*expected whole numbers"),
    "dim is a list": (table(dim=[16]), r"dim=\[16\].*expected whole numbers"),
    "dim is NaN": (table(dim=NAN), "dim=nan.*expected whole numbers"),
    "dim is negative": (table(dim=-16), "dim=-16.*expected whole numbers and dim >= 1"),
    "dim is another": (table(dim=17), "table of 97 x 16; its configuration describes a factored one of 97 x 17"),
    "dim is huge": (table(dim=10**15), "is a table of 97 x 1,000,000,000,000,000 in .*; expected at most"),
    "sizes is null": (table(cluster_sizes=None), "is described by .*'cluster_sizes': None"),
    "sizes is a dictionary": (table(cluster_sizes={"0": 97}), "is described by .*expected"),
    "sizes of true": (table(cluster_sizes=[True, 48, 48]), "cluster_sizes=.True.*expected whole numbers"),
    "sizes of null": (table(cluster_sizes=[None, 48, 49]), "cluster_sizes=.None.*expected whole numbers"),
    "sizes of lists": (table(cluster_sizes=[[97], 0, 0]), "expected whole numbers"),
    "sizes of NaN": (table(cluster_sizes=[NAN, 48, 49]), "expected whole numbers"),
    "sizes are negative": (table(cluster_sizes=[-1, 49, 49]), "expected sizes >= 0"),
    "sizes are of fewer tokens": (table(cluster_sizes=[1, 1, 1]), "table of 97 x 16; .* factored one of 3 x 16"),
    "sizes are in another order": (
        section(lambda s: s["embedding"].update(cluster_sizes=[97, 0, 0], cluster_ranks=[4, 5, 6])),
        rf"{TABLE}.coefficients has shape \(485,\) in the checkpoint; expected \(388,\) from its config.json",
    ),
    "sizes are huge": (table(cluster_sizes=[10**18, 1, 1]), "is a table of 1,000,000,000,000,000,002 x 16 in"),
    "sizes are endless": (table(cluster_sizes=[10**4000, 1, 1]), "is a table of .* x 16 in .*; expected at most"),
    "ranks is a number": (table(cluster_ranks=5), "is described by .*'cluster_ranks': 5"),
    "ranks of floats": (table(cluster_ranks=[5.0, 5.0, 5.0]), r"cluster_ranks=\(5.0.*expected whole numbers"),
    "ranks beyond the width": (table(cluster_ranks=[5, 5, 17]), "ranks from 0 to dim=16"),
    "ranks are negative": (table(cluster_ranks=[5, 5, -5]), "ranks from 0 to dim=16"),
    "ranks are too few": (table(cluster_ranks=[5, 5]), "3 cluster_sizes and 2 cluster_ranks"),
    "ranks are others": (table(cluster_ranks=[6, 5, 5]), rf"{TABLE}.(bases|coefficients) has shape"),
    "bands beside ranks": (table(cluster_bands=[]), "few bits is described by .*; expected dim, cluster_sizes"),
    "base type is a number": (config(base_model_type=3), "base_model_type is 3; expected a model type"),
    "base type is a path": (config(base_model_type="../bert"), "base_model_type is '../bert'; expected a model type"),
    "base type is another": (
        config(base_model_type="distilbert"),
        r"has no distilbert\S*.bases, .*; expected every factor",
    ),
    "width is a text": (config(hidden_size="wide"), "fields of the checkpoint's BertConfig cannot be used .*hidden_si"),
    "width is another": (config(hidden_size=32), "vocabulary table of 97 x 32; .* factored one of 97 x 16"),
    "tokens are huge": (config(vocab_size=10**30), "vocab_size=1,000.*; expected at most"),
    "layers are endless": (config(num_hidden_layers=10**9), "num_hidden_layers=1,000.*; expected at most 10,000"),
    "labels are endless": (config(num_labels=10**9), "num_labels=1,000.*; expected at most"),
    "tokens are negative": (config(vocab_size=-1), "vocab_size=-1; expected at most"),
    "tokens are more": (config(vocab_size=10**9), "vocabulary table of 1,000,000,000 x 16; .* factored one of 97 x"),
    "a name of ours": (config(factor_layouts=3), "fields of the checkpoint's BertConfig cannot be used"),
    "weights elsewhere": (config(transformers_weights="../x.safetensors"), "transformers_weights='../x.safetensors'"),
    "weights in a pickle": (config(transformers_weights="adapter_model.bin"), "transformers_weights='adapter_model"),
}
TENSORS: dict[str, Case] = {
    **{f"{name} is missing": (factor(name, lambda _: None), rf"has no {TABLE}.{name}\b.*; expected every factor.*fetch")
       for name in ("coefficients", "bases", "rows")},
    **{f"{name} is empty": (factor(name, lambda t: t[:0]), rf"{TABLE}.{name} has shape \(0.*; expected \(\d+")
       for name in ("coefficients", "bases", "rows")},
    **{f"{name} is of another rank": (factor(name, lambda t: t[None]), rf"{TABLE}.{name} has shape \(1, .*; expected")
       for name in ("coefficients", "bases", "rows")},
    **{f"{name} is a number": (factor(name, lambda t: t.view(-1)[0]), rf"{TABLE}.{name} has shape \(\) .*; expected")
       for name in ("coefficients", "bases", "rows")},
    **{f"{name} of {value}": (factor(name, put(value)), rf"{TABLE}.{name} has numbers that are infinite or NaN in")
       for name in ("coefficients", "bases") for value in (NAN, INFINITY, -INFINITY)},
    **{f"{name} of whole numbers": (factor(name, lambda t: t.long()), rf"{TABLE}.{name} has dtype I64; expec")
       for name in ("coefficients", "bases")},
    "coefficients of truths": (factor("coefficients", lambda t: t > 0), "coefficients has dtype BOOL; expected"),
    "rows of floats": (factor("rows", lambda t: t.float()), f"{TABLE}.rows has dtype F32; expected whole"),
    "rows of NaN": (factor("rows", lambda t: put(NAN)(t.float())), "rows has dtype F32; expected whole"),
    "rows are one": (factor("rows", torch.zeros_like), "rows assigns tokens to stored rows 0 to 0; expected each"),
    "rows beyond the table": (factor("rows", put(2**31 - 1)), "rows assigns tokens to stored rows 0 to 2147483647"),
    "rows below": (factor("rows", put(-(2**31))), "rows assigns tokens to stored rows -2147483648 to"),
    "all factors are missing": (
        tensors(lambda found: [found.pop(f"{TABLE}.{name}") for name in ("coefficients", "bases", "rows")]),
        rf"has no {TABLE}.bases, {TABLE}.coefficients, {TABLE}.rows\b.*; expected every factor",
    ),
    "a layer is missing": (
        tensors(lambda found: found.pop("bert.encoder.layer.0.output.dense.bias")),
        r"has no bert.encoder.layer.0.output.dense.bias; expected every weight of the ProjClustBertForMaskedLM",
    ),
    "no tensor at all": (tensors(dict.clear), rf"the checkpoint has no {TABLE}.\w+; expected every factor"),
}  # fmt: skip
FILES: dict[str, Case] = {
    "cut at the end": (
        content("model.safetensors", lambda c: c[:-1]),
        "model.safetensors' cannot be read .*; expected",
    ),
    "cut in the header": (content("model.safetensors", lambda c: c[:50]), "model.safetensors' cannot be read"),
    "a header length alone": (content("model.safetensors", lambda c: c[:8]), "model.safetensors' cannot be read"),
    "a huge header": (content("model.safetensors", lambda c: b"\xff" * 7 + c[7:]), "model.safetensors' cannot be read"),
    "empty": (content("model.safetensors", lambda _: b""), "model.safetensors' cannot be read"),
    "other bytes": (content("model.safetensors", lambda c: c[::-1]), "model.safetensors' cannot be read"),
}
PACKED: dict[str, Case] = {
    "scale_mean is NaN": (table(scale_mean=NAN), "few bits is described by .*scale_mean"),
    "scale_mean is true": (table(scale_mean=True), "few bits is described by .*scale_mean"),
    "scale_mean is endless": (table(scale_mean=10**400), "few bits is described by .*scale_mean"),
    "scale_mean is negative": (table(scale_mean=-1.0), "few bits is described by .*scale_mean"),
    "scale_mean is another": (table(scale_mean=1e300), "scales has the weighted mean .*; expected 1e"),
    "scale_mean is a text": (table(scale_mean="1"), "few bits is described by .*scale_mean"),
    "bands of null": (table(cluster_bands=[None, None]), "few bits is described by .*; expected dim"),
    "bands of nothing": (table(cluster_bands=[[], []]), rf"{TABLE}.\w+ has shape .*; expected \(0,\) from its config"),
    "sizes are huge": (table(cluster_sizes=[10**15, 1]), "is a table of 1,000,000,000,000,001 x 32 in .*at most"),
    "a checksum is endless": (section(lambda s: s["embedding"]["checksums"].update(bases=10**90)), "bases has the CRC"),
    "scales are missing": (factor("scales", lambda _: None), rf"has no {TABLE}.scales, .*; expected every factor"),
    "clusters are missing": (factor("clusters", lambda _: None), rf"has no {TABLE}.clusters; expected every factor"),
    "codes are missing": (
        factor("coefficients", lambda _: None),
        rf"has no {TABLE}.coefficients\b.*; expected every fac",
    ),
    "cut": (content("model.safetensors", lambda c: c[:-1]), "model.safetensors' cannot be read"),
}
INDICES: dict[str, Case] = {
    **{f"names {name}": (shard(name), "index.json' names the file .*; expected safetensors files in its own folder")
       for name in ("../model.safetensors", "/etc/model.safetensors", "C:\\model.safetensors", "sub/model.safetensors",
                    "..\\model.safetensors", "nowhere.safetensors", "pytorch_model.bin", "", "..", 3, None, [])},
    "is empty": (content("model.safetensors.index.json", lambda _: b""), "index.json' cannot be read .*; expected"),
    "is cut": (content("model.safetensors.index.json", lambda c: c[:-9]), "index.json' cannot be read .*; expected"),
    "is no text": (content("model.safetensors.index.json", lambda _: b"\xff\xfe\x00"), "index.json' cannot be read"),
    "is a list": (content("model.safetensors.index.json", lambda _: b"[]"), "index.json' cannot be read"),
    "has no metadata": (index(lambda found: found.pop("metadata")), "index.json' cannot be read .KeyError"),
    "has no map": (index(lambda found: found.pop("weight_map")), "index.json' cannot be read .KeyError"),
    "has another map": (index(lambda found: found.update(weight_map=[])), "has no metadata or no weight_map"),
    "has an empty map": (index(lambda found: found.update(weight_map={})), "has no metadata or no weight_map"),
    "a shard is gone": (
        lambda folder: next(folder.glob("model-*.safetensors")).unlink(), "names the file .*; expected safetensors fil"
    ),
    "a shard is cut": (
        lambda folder: content(next(folder.glob("model-*.safetensors")).name, lambda c: c[:-1])(folder),
        r"model-\d+-of-\d+.safetensors' cannot be read",
    ),
}  # fmt: skip
CASES = [
    pytest.param(kind, *case, id=f"{kind}: {name}")
    for kind, cases in (("float", FIELDS | TENSORS | FILES), ("packed", PACKED), ("sharded", INDICES))
    for name, case in cases.items()
]


@pytest.mark.parametrize(("kind", "damage", "message"), CASES)
def test_a_damaged_folder_is_refused(
    whole: dict[str, Path], tmp_path: Path, kind: str, damage: Damage, message: str
) -> None:
    refused(damaged(whole[kind], damage, tmp_path), message)


def test_what_is_not_damaged_loads(whole: dict[str, Path]) -> None:
    for folder in whole.values():
        assert AutoModelForMaskedLM.from_pretrained(folder)(torch.tensor([[VOCAB_SIZE - 1]])).logits.isfinite().all()


def test_the_error_comes_before_any_large_allocation(whole: dict[str, Path], tmp_path: Path) -> None:
    """A billion tokens of one number each, which the whole config.json agrees on."""
    code = """
import resource, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from hf_projclust import ProjClustCheckpointError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for auto, options in ((AutoModel, {}), (AutoModelForMaskedLM, {"device_map": {"": "cpu"}})):
    try:
        auto.from_pretrained(sys.argv[1], **options)
        print("loaded")
    except ProjClustCheckpointError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 200)
"""

    def ask_for_more(fields: Any) -> None:
        fields["vocab_size"] = 10**9
        fields["projclust"]["embedding"].update(cluster_sizes=[10**9], cluster_ranks=[1])

    folder = damaged(whole["float"], lambda out: edit_json(out / "config.json", ask_for_more), tmp_path)
    body, head, is_small = run_python(code, str(folder)).splitlines()
    for line in (body, head):
        assert "word_embeddings.coefficients has shape (485,) in the checkpoint; expected (1000000000,) from" in line
    assert is_small == "True"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attn_implementation": "someone/kernel"}, "code on the Hub"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1,000"),
        ({"num_labels": 10**9}, "num_labels=1,000"),
        ({"transformers_weights": "evil.bin"}, "transformers_weights='evil.bin'; expected"),
    ],
)
def test_made_classes_refuse_what_the_auto_classes_refuse(
    fields: Any, message: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    folder = damaged(whole["float"], config(**fields), tmp_path)
    made = type(AutoModelForMaskedLM.from_pretrained(whole["float"]))
    for load in (made.from_pretrained, made.config_class.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ProjClustCheckpointError, match=message):
            load(folder)


@pytest.mark.parametrize("fields", [{"num_experts": 10**9}, {"text_config": {"num_hidden_layers": 10**9}}])
def test_endless_counts_of_parts_and_experts_are_refused(fields: dict[str, Any]) -> None:
    native = Qwen2MoeConfig if "num_experts" in fields else Gemma3Config
    with pytest.raises(ProjClustCheckpointError, match=r"num_(experts|hidden_layers)=1,000,000,000; expected at most"):
        projclust_config_class(native).from_dict(fields)


def test_other_ways_to_load_refuse_too(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = damaged(whole["float"], config(intermediate_size=10**9), tmp_path)
    for options in ({}, {"ignore_mismatched_sizes": True}, {"device_map": "cpu"}, {"dtype": torch.float16}):
        refused(folder, r"intermediate.dense.weight has shape \(24, 16\) .*; expected \(1000000000, 16\)", **options)
    on_disk = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    refused(folder, "intermediate.dense.weight has shape", **on_disk)


def test_a_model_without_weights_is_refused_before_its_memory_is_reserved(whole: dict[str, Path]) -> None:
    config = AutoConfig.from_pretrained(whole["float"])
    assert AutoModel.from_config(config).get_input_embeddings().layout == config.factor_layouts["embedding"]
    config.vocab_size = 10**12  # 64 TB
    with pytest.raises(ProjClustCheckpointError, match="table of 1,000,000,000,000 x 16; .* factored one of 97 x 16"):
        AutoModel.from_config(config)


def test_a_native_class_refuses_a_compressed_folder(whole: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="raising an error"):
        BertForMaskedLM.from_pretrained(whole["float"])


def test_a_dense_folder_under_our_model_type_is_refused(tmp_path: Path) -> None:
    folder = save(TINY_MODELS["bert"].build(), tmp_path / "dense")
    config(model_type="projclust")(folder)
    refused(folder, "base_model_type is None; expected a model type")
    config(base_model_type="bert")(folder)
    refused(folder, "projclust=None; expected a dictionary")
    layout = {"dim": WIDTH, "cluster_sizes": [VOCAB_SIZE], "cluster_ranks": [2]}
    config(projclust={"format_version": 1, "embedding": layout})(folder)
    refused(folder, rf"has no {TABLE}.bases, {TABLE}.coefficients, {TABLE}.rows\b.*; expected every factor")


def test_a_compressed_folder_under_the_native_model_type_is_refused(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = damaged(whole["float"], config(model_type="bert", base_model_type=None), tmp_path)
    with pytest.raises(RuntimeError, match="raising an error"):
        AutoModelForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"model_type": '])
def test_a_configuration_that_is_no_json_is_refused_by_transformers(
    whole: dict[str, Path], tmp_path: Path, text: bytes
) -> None:
    """Which file is ours is not known before it is read."""
    folder = damaged(whole["float"], content("config.json", lambda _: text), tmp_path)
    with pytest.raises(OSError, match="is not a valid JSON file"):
        AutoModelForMaskedLM.from_pretrained(folder)


def test_a_folder_without_weights_is_refused_by_transformers(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = damaged(whole["float"], lambda out: (out / "model.safetensors").unlink(), tmp_path)
    with pytest.raises(OSError, match="no file named model.safetensors found"):
        AutoModelForMaskedLM.from_pretrained(folder)
