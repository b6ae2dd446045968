"""The command line: what each command writes and prints, its examples, and its errors."""

import functools
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from conftest import TINY_MODELS, VOCAB_SIZE, equal_state_dicts, factor_names, run_cli
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM
from typer.testing import CliRunner

import hf_projclust
from hf_projclust import cli, compress
from hf_projclust.evaluation.layers import benchmark as layer_benchmark
from hf_projclust.evaluation.layers.benchmark import EMBEDDING, EMBEDDINGS, HEAD, HEADS, TRAINING
from hf_projclust.evaluation.solvers import benchmark as solver_benchmark
from hf_projclust.sizes import measure


@pytest.fixture
def base(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dense model, by a relative name that looks like a Hub id; the current folder is above it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    folder = tmp_path / "distilbert" / "distilbert-base-uncased"
    TINY_MODELS["bert"].build().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_compress_writes_what_the_function_returns_with_the_tokenizer(base: Path, tmp_path: Path) -> None:
    run_cli("compress", base, "--output", tmp_path / "out", "--num-clusters", 3, "--compression", 0.4, "--seed", 2)
    expected = compress(base, num_clusters=3, compression=0.4, seed=2)
    assert equal_state_dicts(AutoModelForMaskedLM.from_pretrained(tmp_path / "out"), expected)
    tokens = [AutoTokenizer.from_pretrained(path)("good film")["input_ids"] for path in (base, tmp_path / "out")]
    assert tokens[0] == tokens[1]


def test_info_prints_clusters_and_sizes(base: Path, tmp_path: Path) -> None:
    run_cli("compress", base, "--output", tmp_path / "out", "--num-clusters", 3, "--rank", 4)
    output = run_cli("info", tmp_path / "out")
    solver = json.loads((tmp_path / "out/config.json").read_text())["projclust"]
    for size, kept in zip(
        solver["embedding"]["cluster_sizes"], solver["solver"]["embedding"]["energy_kept"], strict=True
    ):
        assert re.search(rf"│ +{size} │ +4 │ +32 │ +{kept:.1%} │", output)
    assert f"{97 * 16:,}" in output  # dense table
    assert f"{4 * (97 + 3 * 16):,}" in output  # compressed table
    assert f"{solver['solver']['embedding']['relative_squared_error']:.4f}" in output


@pytest.mark.parametrize("shard_size", ["1GB", "4KB"])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_sizes_are_those_of_the_files_and_of_the_loaded_models(name: str, shard_size: str, tmp_path: Path) -> None:
    dense_model = TINY_MODELS[name].build()
    model = compress(dense_model, num_clusters=3, compression=0.4)
    model.save_pretrained(tmp_path / "compressed", max_shard_size=shard_size)
    dense_model.save_pretrained(tmp_path / "dense", max_shard_size=shard_size)
    dense, compressed = measure(tmp_path / "compressed")
    files = {path.name: path.stat().st_size for path in (tmp_path / "compressed").glob("*.safetensors")}
    assert compressed.model_disk_bytes == sum(files.values())
    stored = {k: v for file in files for k, v in load_file(tmp_path / "compressed" / file).items()}
    table = [tensor.nbytes for key, tensor in stored.items() if key in factor_names(TINY_MODELS[name])]
    assert compressed.table_disk_bytes == sum(table)
    copies_of_rows = 4 * VOCAB_SIZE * (len(TINY_MODELS[name].tables) - 1)
    assert compressed.table_memory_bytes == sum(table) + copies_of_rows
    for sizes, loaded in [(compressed, model), (dense, dense_model)]:
        assert sizes.model_memory_bytes == loaded.get_memory_footprint()
        assert sizes.model_parameters == loaded.num_parameters()
    dense_files = sum(path.stat().st_size for path in (tmp_path / "dense").glob("*.safetensors"))
    assert abs(dense.model_disk_bytes - dense_files) < 400 * len(files)  # headers name other tensors
    assert dense.table_parameters == dense_model.get_input_embeddings().weight.numel()


def test_decompress_writes_a_native_model_with_equal_outputs(base: Path, tmp_path: Path) -> None:
    run_cli("compress", base, "--output", tmp_path / "out", "--num-clusters", 3, "--rank", 4)
    run_cli("decompress", tmp_path / "out", "--output", tmp_path / "dense")
    assert json.loads((tmp_path / "dense/config.json").read_text())["model_type"] == "bert"
    dense, compressed = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("dense", "out"))
    assert type(dense) is BertForMaskedLM
    inputs = AutoTokenizer.from_pretrained(tmp_path / "dense")("good film", return_tensors="pt")
    torch.testing.assert_close(dense(**inputs).logits, compressed(**inputs).logits, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("signed_in")
def test_examples_in_help_run_word_for_word(base: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("good film\nbad film\n")
    for command in ("compress", "info", "evaluate", "push", "decompress", "recover"):
        help_text = " ".join(run_cli(command, "--help").split())
        example = re.search(r"Example: (hf-projclust .*?)(?:$| ╭)", help_text)
        assert example, help_text
        run_cli(*shlex.split(example[1])[1:])
    assert type(AutoModel.from_pretrained(tmp_path / "distilbert-dense")).__name__ == "BertModel"


def test_options_of_compress_are_those_of_the_function() -> None:
    function, command = (inspect.signature(f).parameters for f in (hf_projclust.compress, cli.compress))
    objects = ("model_or_path", "tokenizer")  # which no command line can give; MODEL stands for both
    of_output = ("model", "output", "standalone", "force")
    options = {name: p.default for name, p in function.items() if name not in objects}
    assert {name: p.default for name, p in command.items() if name not in of_output} == options


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        (["MODEL", "--compression", "0.4", "--output", "out"], [0.4]),
        (["MODEL", "--compression", "0.4", "0.6", ".8", "--output", "out"], [0.4, 0.6, 0.8]),
        (["--compression", "0.4", "0.6", "MODEL", "--output", "out"], [0.4, 0.6]),
        (["MODEL", "--output", "out", "--compression=4e-1", "0.6", "--seed", "7"], [0.4, 0.6]),
        (["MODEL", "--compression", "0.4", "--compression", "0.6", "--output", "out"], [0.4, 0.6]),
        (["0.6", "--compression", "0.4", "--output", "out"], [0.4]),  # a folder of such a name comes first
    ],
)
def test_compression_takes_one_number_or_several(arguments: list[str], rates: list[float]) -> None:
    command = typer.main.get_command(cli.app).commands["compress"]
    context = command.make_context("compress", list(arguments))
    assert list(context.params["compression"]) == rates
    assert context.params["model"] in ("MODEL", "0.6")
    assert str(context.params["output"]) == "out"


def test_help_lists_every_command() -> None:
    output = run_cli("--help")
    assert all(name in output for name in ("compress", "push", "info", "decompress", "demo", "benchmark"))


BAD = [
    (["compress", "BASE", "--output", "OUT"], "exactly one of them"),
    (["compress", "BASE", "--output", "OUT", "--compression", "1.5"], "above 0 and below 1"),
    (["compress", "BASE", "--output", "OUT", "--rank", "4", "--compression", "0.5"], "exactly one of them"),
    (["compress", "BASE", "--output", "OUT", "--rank", "17"], "expected 1 to 16"),
    (["compress", "BASE", "--output", "OUT", "--rank", "4", "--num-clusters", "98"], "expected 1 to 97"),
    (
        ["compress", "BASE", "--output", "OUT", "--rank", "4", "--preset", "k"],
        "expected one of 'adaptive', 'messi', 'svd', 'robust'",
    ),
    (
        ["compress", "BASE", "--output", "OUT", "--compression", "0.4", "--num-clusters", "many"],
        "expected a whole number",
    ),
    (["compress", "BASE", "--output", "OUT", "--compression", "0.4", "--token-counts", "words:xx"], "zh"),
    (["compress", "BASE", "--output", "OUT", "--compression", "0.4", "--token-counts", "no.txt"], "expected"),
    (
        ["compress", "BASE", "--output", "OUT", "--compression", "0.4", "--memory-limit", "10KB"],
        "too small for one block",
    ),
    (["compress", "BASE", "--output", "OUT", "--compression", "0.4", "--memory-limit", "much"], "memory_limit='much'"),
    (["compress", "BASE", "--output", "OUT", "--compression", "0.4", "--device", "moon"], "device='moon'"),
    (["compress", "BASE", "--output", "OUT", "--compression", "0.4", "--checkpoint", "FULL"], "holds other things"),
    (["compress", "BASE", "--output", "OUT", "--rank", "4", "--checkpoint", "OUT"], "are one folder"),
    (["compress", "BASE", "--output", "OUT", "--rank", "4", "--checkpoint", "INSIDE"], "are one folder"),
    (["compress", "BASE", "--output", "INSIDE", "--rank", "4", "--checkpoint", "OUT"], "are one folder"),
    (["compress", "no/such/folder", "--output", "OUT", "--rank", "4"], "is not a folder"),
    (["compress", "BASE", "--output", "FULL", "--rank", "4"], "--force"),
    (["compress", "BASE", "--output", "BASE", "--rank", "4", "--force"], "which is in use"),
    (["info", "no/such/folder"], "is not a folder"),
    (["info", "BASE"], "holds a dense model"),
    (["info", "FULL"], "has no config.json"),
    (["decompress", "BASE", "--output", "OUT"], "is not compressed"),
    (["decompress", "no/such/folder", "--output", "OUT"], "is not a folder"),
    (["decompress", "BASE", "--output", "FULL"], "--force"),
    (["demo", "--output", "FULL"], "--force"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_mistakes_get_one_message_and_nothing_is_written(
    base: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    places = {"BASE": base, "OUT": tmp_path / "out", "INSIDE": tmp_path / "out/inside", "FULL": tmp_path / "full"}
    before = sorted(tmp_path.rglob("*"))
    output = run_cli(*[places.get(argument, argument) for argument in arguments], code=1)
    assert output.count("Error:") == 1
    assert message in output
    assert "Traceback" not in output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "has no readable weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 30), "has no readable weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace('"energy_kept"', '"energy"')
            ),
            "expected under 'embedding' the record of how it was compressed",
        ),
    ],
)
def test_info_of_a_damaged_folder_gets_one_message(base: Path, tmp_path: Path, damage, message: str) -> None:
    run_cli("compress", base, "--output", tmp_path / "out", "--rank", 4)
    damage(tmp_path / "out")
    output = run_cli("info", tmp_path / "out", code=1)
    assert output.count("Error:") == 1
    assert message in output


def test_weights_that_are_cut_get_one_message(base: Path, tmp_path: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    output = run_cli("compress", base, "--output", tmp_path / "out", "--rank", 4, code=1)
    assert "could not be loaded; expected a folder" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (lambda: torch.empty(2**50), "memory is not enough ([enforce fail at alloc_cpu"),
        (lambda: np.empty(2**50), "memory is not enough (Unable to allocate 8.00 PiB"),
        (lambda: bytearray(2**60), "memory is not enough (MemoryError)"),
        (lambda: torch.linalg.cholesky(-torch.eye(2)), "a decomposition failed (linalg.cholesky: "),
        (lambda: np.linalg.cholesky(-np.eye(2)), "Matrix is not positive definite"),
    ],
)
def test_failures_of_the_machine_get_one_message(base: Path, tmp_path: Path, fail, message: str, monkeypatch) -> None:
    monkeypatch.setattr("hf_projclust.factoring.cluster", lambda *_, **__: fail())
    output = run_cli("compress", base, "--output", tmp_path / "out", "--rank", 4, code=1)
    assert output.count("Error:") == 1
    assert message in output
    assert not (tmp_path / "out").exists()


def test_what_may_be_a_bug_keeps_its_traceback(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_projclust.factoring.cluster", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    result = CliRunner().invoke(cli.app, ["compress", str(base), "--output", str(tmp_path / "out"), "--rank", "4"])
    assert isinstance(result.exception, RuntimeError)
    assert "Error:" not in result.output


def test_force_replaces_and_keeps_nothing_of_the_old(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("x")
    run_cli("compress", base, "--output", tmp_path / "out", "--rank", 4, "--force")
    assert not (tmp_path / "out/old").exists()
    assert (tmp_path / "out/model.safetensors").exists()


def test_an_interrupt_while_saving_leaves_no_output(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_projclust.saving.copy_companions", interrupted)  # after the weights were written
    run_cli("compress", base, "--output", tmp_path / "out", "--rank", 4, code=130)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distilbert"]


def test_info_says_how_tokens_were_counted(base: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("good film\nbad film\n")
    counted = ["--token-counts", "tokenizer", "--token-counts", f"2*{tmp_path / 'corpus.txt'}"]
    output = run_cli("compress", base, "--output", tmp_path / "out", "--compression", 0.4, *counted)
    assert "Token counts: ['tokenizer', '2*corpus.txt']" in output
    assert str(tmp_path) not in (tmp_path / "out/config.json").read_text()
    expected = compress(base, compression=0.4, token_counts=["tokenizer", f"2*{tmp_path / 'corpus.txt'}"])
    assert equal_state_dicts(AutoModelForMaskedLM.from_pretrained(tmp_path / "out"), expected)


def test_info_reads_a_record_without_token_counts_as_uniform(base: Path, tmp_path: Path) -> None:
    run_cli("compress", base, "--output", tmp_path / "out", "--rank", 4)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["projclust"]["solver"]["embedding"].pop("token_counts") == "tokenizer"
    (tmp_path / "out/config.json").write_text(json.dumps(config))
    assert "Token counts: uniform" in run_cli("info", tmp_path / "out")


INTERRUPTED = """
import os, signal, sys
from hf_projclust.solvers import Checkpoint
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
save = Checkpoint.save
def interrupt_after_three(self, name, state):
    save(self, name, state)
    interrupt_after_three.calls = getattr(interrupt_after_three, "calls", 0) + 1
    if interrupt_after_three.calls == 3:
        os.kill(os.getpid(), signal.SIGINT)
Checkpoint.save = interrupt_after_three
from hf_projclust.cli import app
app(sys.argv[1:])
"""


def test_an_interrupted_command_goes_on_from_its_checkpoint(base: Path, tmp_path: Path) -> None:
    arguments = ["compress", str(base), "--output", "out", "--compression", "0.4", "--num-clusters", "4"]
    arguments += ["--token-counts", "uniform", "--checkpoint", "saved"]
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distilbert", "saved"]
    run_cli(*arguments)
    expected = compress(base, compression=0.4, num_clusters=4, token_counts="uniform")
    compressed = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(compressed.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)
    other = run_cli(*arguments[:-2], "--seed", 1, "--checkpoint", "saved", "--force", code=1)
    assert "belongs to another run: seed differ" in other


def test_each_rate_has_a_checkpoint_of_its_own(base: Path, tmp_path: Path) -> None:
    arguments = ["--compression", 0.4, 0.6, "--num-clusters", 3, "--token-counts", "uniform"]
    run_cli("compress", base, *arguments, "--output", "pc", "--checkpoint", "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["pc-40", "pc-60"]
    for rate in (40, 60):
        expected = compress(base, compression=rate / 100, num_clusters=3, token_counts="uniform")
        assert equal_state_dicts(AutoModelForMaskedLM.from_pretrained(f"pc-{rate}"), expected)


def test_two_processes_write_the_model_of_one(base: Path, tmp_path: Path) -> None:
    arguments = ["compress", str(base), "--compression", "0.4", "--num-clusters", "4", "--token-counts", "uniform"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "hf_projclust", *arguments, "--memory-limit", "250KB", "--output", "two"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Relative squared error") == 1
    run_cli(*arguments, "--memory-limit", "250KB", "--output", "one")
    one, two = (AutoModelForMaskedLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert torch.equal(one.get_input_embeddings().rows, two.get_input_embeddings().rows)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_benchmark_prints_a_line_a_solver_and_writes_the_plot(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = torch.randn(120, 16, generator=torch.Generator().manual_seed(0))
    measured = functools.partial(solver_benchmark.benchmark_solvers, table=table, sizes=())
    monkeypatch.setattr(solver_benchmark, "benchmark_solvers", measured)
    output = run_cli("benchmark", "solvers", "--output", "plot.png", "--num-clusters", 2, "--reference-restarts", 2)
    for solver in ("reference, 2", "svd", "messi", "adaptive", "robust"):
        assert solver in output
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "is there; expected a file to make" in run_cli("benchmark", "solvers", "--output", "plot.png", code=1)


def test_options_of_the_benchmark_are_those_of_the_function() -> None:
    function, command = (inspect.signature(f).parameters for f in (solver_benchmark.benchmark_solvers, cli.solvers))
    options = {name: p.default for name, p in function.items() if name not in ("table", "sizes")}
    assert {name: p.default for name, p in command.items() if name not in ("output", "force")} == options


def printed_ratio(row: dict) -> str:
    low, middle, high = (
        f"{row[name]:.2f}" if row[name] < 100 else f"{row[name]:,.0f}" for name in ("ratio_low", "ratio", "ratio_high")
    )
    return f"{middle} ({low}-{high})"


def test_the_benchmark_of_layers_prints_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["benchmark", "layers", "--tokens", 1, 16, "--vocabulary", 320, 330, "--dim", 64, "--rounds", 2]
    output = run_cli(*arguments, "--output", "layers.json")
    record = json.loads((tmp_path / "layers.json").read_text())
    assert record["options"]["tokens"] == [1, 16]
    # The wheel of a CUDA build may leave out of its metadata what follows the plus sign.
    assert record["versions"]["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    assert record["machine"] in " ".join(output.split())
    assert ("other work took" in output) == (record["busy_share"] > 0.2)
    assert {(row["vocabulary"], row["tokens"]) for row in record["rows"]} == {
        (n, m) for n in (320, 330) for m in (1, 16)
    }
    for row in record["rows"]:
        printed = printed_ratio(row)
        assert row["contender"] in output
        assert row["contender"] == "dense" or printed in output
    embeddings, heads = ([each.name for each in all_[1:]] for all_ in (EMBEDDINGS, HEADS))
    in_order = dict(zip((EMBEDDING, TRAINING, HEAD), (embeddings, embeddings, heads), strict=True))
    for operation in in_order:
        (found,) = re.findall(rf"  {operation} *\n(.*?)└", output, re.DOTALL)
        lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in found.splitlines() if "│" in line]
        times = [line for line in lines if line[2] == "time"]
        assert [tuple(line[:2]) for line in times] == [("320", "1"), ("320", "16"), ("330", "1"), ("330", "16")]
        names = [cell.strip() for cell in found.splitlines()[1].split("┃")[5:-1]]
        assert names == [name for name in in_order[operation] if name in names]
        for line in times:
            of_line = [
                r
                for r in record["rows"]
                if [r["operation"], *line[:2]] == [operation, str(r["vocabulary"]), str(r["tokens"])]
            ]
            ratios = {r["contender"]: printed_ratio(r) for r in of_line}
            assert [ratios.get(name, "") for name in names] == line[4:]
    for absence in record["absences"]:
        assert re.search(rf"No {absence['contender']} in {absence['operation']} of .*{absence['reason']}", output)
    assert "is there; expected a file to make" in run_cli(*arguments, "--output", "layers.json", code=1)
    assert "is in no folder" in run_cli(*arguments, "--output", "none/layers.json", code=1)


def test_options_of_the_benchmark_of_layers_are_those_of_the_function() -> None:
    function, command = (inspect.signature(f).parameters for f in (layer_benchmark.benchmark_layers, cli.layers))
    several = {"tokens": layer_benchmark.TOKENS, "vocabulary": layer_benchmark.VOCABULARY}
    options = {name: p.default for name, p in command.items() if name not in ("output", "force")}
    assert {name: p.default for name, p in function.items()} == {**options, **several}
    help_text = " ".join(run_cli("benchmark", "layers", "--help").replace("│", " ").split())
    for name, numbers in several.items():
        assert f"By default {' '.join(map(str, numbers))}." in help_text, name
    assert "Example: hf-projclust benchmark layers" in help_text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "tokens=0; expected a whole number, 1 or more"),
        (["--vocabulary", "30", "30"], "vocabulary=[30, 30]; expected one number or several that differ"),
        (["--dim", "2"], "dim=2: 8 clusters cannot save"),
        (["--rounds", "0"], "rounds=0"),
        (["--device", "moon"], "device='moon'"),
        (["--dtype", "int8"], "dtype='int8'"),
    ],
)
def test_mistakes_in_the_benchmark_of_layers_get_one_message(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    output = run_cli("benchmark", "layers", *arguments, "--output", tmp_path / "layers.json", code=1)
    assert output.count("Error:") == 1
    assert message in output
    assert not list(tmp_path.iterdir())
