"""A config.json in which one native number is huge: refused, or loaded whole; soon, and in little memory.

What of native fields makes tensors is refused by the headers of the files, what is counted out by a bound.
"""

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import COMPRESSED, TINY_MODELS, equal_state_dicts
from damage import edit_json
from transformers import AutoModelForCausalLM, CTRLConfig

from hf_projclust import ProjClustCheckpointError, compress
from hf_projclust.loading import load_model

SECONDS = 60  # of which a load takes less than one


@pytest.fixture
def hurry() -> Iterator[None]:
    """Let a test fail that would not end."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise SystemExit(f"it did not end within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def whole_numbers(fields: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where native fields are whole numbers."""
    for name, value in fields.items():
        if isinstance(value, dict) and name != "projclust":
            yield from whole_numbers(value, (*above, name))
        elif type(value) is int:
            yield (*above, name)


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_a_huge_native_number_takes_neither_time_nor_memory(name: str, tmp_path: Path) -> None:
    model = TINY_MODELS[name].compressed()
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    written = json.loads(config.read_text())
    refused = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for place in [*whole_numbers(written), ("num_labels",)]:
        for number in (10**9, 10**15):
            fields = json.loads(json.dumps(written))
            within = fields
            for key in place[:-1]:
                within = within[key]
            within[place[-1]] = number
            config.write_text(json.dumps(fields))
            try:
                loaded = load_model(tmp_path)
            except Exception as error:  # Transformers has errors of its own for its fields
                refused[place[-1]] = repr(error)
            else:
                assert equal_state_dicts(loaded, model), place
    assert "num_labels" in refused
    assert not [error for error in refused.values() if "alloc" in error.lower() or "MemoryError" in error]
    assert {"vocab_size", model.config.attribute_map.get("hidden_size", "hidden_size")} <= refused.keys()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_huge_tables_of_positions_that_no_file_has_are_refused(tmp_path: Path) -> None:
    config = CTRLConfig(vocab_size=97, n_embd=16, n_layer=1, n_head=2, n_positions=40, dff=24)
    compress(AutoModelForCausalLM.from_config(config), **COMPRESSED).save_pretrained(tmp_path)
    load_model(tmp_path)
    edit_json(tmp_path / "config.json", lambda fields: fields.update(n_positions=10**9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProjClustCheckpointError, match="bytes of tables that are in no file, .* expected at most"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
