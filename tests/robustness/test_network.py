"""Local models need no network: importing, compressing, loading, saving and the commands open no socket at all.

Each case runs in a fresh process with an audit hook, which Python calls before any socket is used. It notes and refuses
events of sockets and of new processes, whatever library it comes from. Code that is not Python's own (the Hub's Xet
client) has no such events; it is shown to be not even loaded. Models that are named by an id are not looked at here.
"""

import os
from pathlib import Path

import pytest
from conftest import TINY_MODELS, run_python

GUARD = """
import sys
EVENTS = []
def refuse(event, arguments):
    if arguments[:1] == ("fc-list",):  # a program by which matplotlib finds fonts
        return
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn")):
        EVENTS.append((event, *map(str, arguments)))
        raise PermissionError(f"{event}{arguments}: this process is to use no network, and to start no other")
sys.addaudithook(refuse)
"""

VERDICT = """
assert not EVENTS, EVENTS
assert "hf_xet" not in sys.modules
print("no socket")
"""

LIBRARY = """
import hf_projclust
from hf_projclust import compress, decompress
from transformers import AutoModelForMaskedLM, AutoTokenizer
base, folder = sys.argv[1:]
model = compress(base, compression=0.4, num_clusters=3)
model.save_pretrained(folder, standalone=True)
AutoTokenizer.from_pretrained(base).save_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder)
model(**AutoTokenizer.from_pretrained(folder)("a good film", return_tensors="pt"))
decompress(model)
"""

COMMANDS = """
from typer.testing import CliRunner
from hf_projclust import cli
base, folder = sys.argv[1:]
def run(*arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
def help_of(command, *path):
    run(*path, "--help")
    for name, each in getattr(command, "commands", {}).items():
        help_of(each, *path, name)
from typer.main import get_command
help_of(get_command(cli.app))
run("compress", base, "--output", folder, "--compression", "0.4", "--num-clusters", "3", "--standalone")
run("info", folder)
run("evaluate", folder, "--against", base)
run("decompress", folder, "--output", folder + "-dense")
"""


@pytest.fixture
def local(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A dense model and a folder to write, where nothing says how to reach the Hub, nor that it is off."""
    for name in os.environ:
        if name.startswith("HF_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    base = Path("org/base")  # as an id on the Hub would be spelled
    TINY_MODELS["bert"].build().save_pretrained(base)
    tokenizer.save_pretrained(base)
    return str(base), "compressed"


@pytest.mark.parametrize("code", [LIBRARY, COMMANDS], ids=["library", "commands"])
def test_local_models_open_no_socket(code: str, local: tuple[str, str]) -> None:
    assert run_python(GUARD + code + VERDICT, *local).endswith("no socket\n")


def test_what_asks_the_hub_is_seen(local: tuple[str, str]) -> None:
    code = """
from huggingface_hub import model_info
try:
    model_info("org/none")
except Exception:
    print([event for event, *_ in EVENTS])
"""
    assert "socket." in run_python(GUARD + code)
