"""One model and one folder under 16 threads and 4 processes at once; and a short round of the soak.

Shown are equal results: of one model to the bit, whichever thread asks; of models that are loaded at once, equal
tensors, and outputs up to rounding, since tensors of a file may lie differently in memory. Nothing is timed.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, VOCAB_SIZE, save
from few_bits import NUM_TOKENS, packed_model

from hf_projclust.vocabulary_projclust import factored_tables

NUM_THREADS, NUM_PROCESSES = 16, 4
# Of two native classes, each with a tied head: how to make the model, its tokens, and its Auto class.
MODELS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "float": (lambda: TINY_MODELS["bert"].compressed(), VOCAB_SIZE, "AutoModelForMaskedLM"),
    "few bits": (lambda: packed_model("gpt2"), NUM_TOKENS, "AutoModelForCausalLM"),
}

# Waits for a line, so that all processes begin at once, and then loads each folder in all threads, for the first time.
LOADER = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
import torch, transformers
import hf_projclust

folders = [(folder, getattr(transformers, auto_class)) for folder, auto_class in json.loads(sys.argv[1])]
num_threads, tie_weights = int(sys.argv[2]), transformers.PreTrainedModel.tie_weights
together = threading.Barrier(num_threads)

def load(number):
    folder, auto_class = folders[number % len(folders)]
    expected = torch.load(f"{folder}/expected.pt")
    together.wait()
    model = auto_class.from_pretrained(folder).eval()
    found = model.state_dict()
    assert found.keys() == expected["tensors"].keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected["tensors"].items())
    with torch.no_grad():
        torch.testing.assert_close(model(expected["input_ids"]).logits, expected["logits"])
    return type(model)

print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(num_threads) as pool:
    made = set(pool.map(load, range(num_threads)))
assert len(made) == len(folders), f"a class was made several times: {made}"
assert transformers.PreTrainedModel.tie_weights is tie_weights, "no model is tied any more"
"""


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(call: Callable[[int], Any]) -> list[Any]:
    """What a call gives in threads that begin together."""
    together = threading.Barrier(NUM_THREADS)

    def run(number: int) -> Any:
        together.wait()
        return call(number)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(run, range(NUM_THREADS)))


def some_tokens(num_tokens: int, number: int) -> torch.Tensor:
    """Token ids: few, of which a look-up takes each alone, or many."""
    shape = (1, 1 + number) if number % 2 else (3, 10 + number)
    return torch.randint(num_tokens, shape, generator=torch.Generator().manual_seed(number))


@torch.no_grad()
def test_threads_of_several_processes_load_a_folder_at_once(tmp_path: Path) -> None:
    folders = []
    for name, (make, num_tokens, auto_class) in MODELS.items():
        model, input_ids = make(), some_tokens(num_tokens, 0)
        folders.append((str(save(model, tmp_path / name)), auto_class))
        expected = {"tensors": model.state_dict(), "input_ids": input_ids, "logits": model(input_ids).logits}
        torch.save(expected, tmp_path / name / "expected.pt")
    command = [sys.executable, "-c", LOADER, json.dumps(folders), str(NUM_THREADS)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(NUM_PROCESSES)]
    ready = [process.stdout.readline() for process in processes]
    for process in processes if ready == ["ready\n"] * NUM_PROCESSES else []:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors


@pytest.mark.parametrize("name", MODELS)
def test_threads_that_use_one_model_at_once_get_equal_bits(name: str, hasty: None) -> None:
    make, num_tokens, _ = MODELS[name]
    model = make().eval()
    table = model.get_input_embeddings()

    @torch.no_grad()
    def use(number: int) -> list[torch.Tensor]:
        input_ids = some_tokens(num_tokens, number)
        hidden_states = table(input_ids)
        largest = model.get_output_embeddings().topk(hidden_states, 3)
        return [hidden_states, *largest, model(input_ids).logits, table.weight[input_ids]]

    alone = [use(number) for number in range(NUM_THREADS)]
    for _ in range(3):
        for found, expected in zip(at_once(use), alone, strict=True):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_threads_that_train_through_one_model_at_once_get_the_gradients_of_one(hasty: None) -> None:
    model = TINY_MODELS["bert"].compressed().eval()
    factors = [model.get_input_embeddings().coefficients, model.get_input_embeddings().bases]

    def gradients(number: int) -> tuple[torch.Tensor, ...]:
        loss = model(some_tokens(VOCAB_SIZE, number)).logits.square().mean()
        return torch.autograd.grad(loss, factors)

    alone = [gradients(number) for number in range(NUM_THREADS)]
    for found, expected in zip(at_once(gradients), alone, strict=True):
        torch.testing.assert_close(found, expected)


def test_threads_see_one_weight_of_a_tied_table_and_head(hasty: None) -> None:
    model = TINY_MODELS["bert"].compressed()
    modules = [table for table in factored_tables(model).values() for _ in range(NUM_THREADS // 2)]
    for _ in range(100):  # a weight that no one holds any more is made anew
        assert len({id(weight) for weight in at_once(lambda number: modules[number].weight)}) == 1


def test_loads_and_requests_leave_nothing_behind() -> None:
    """A short round; with the defaults of the script it is a thousand loads and ten minutes."""
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--seconds", "2", "--loads", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["loads"] == 30
    assert all(figures["requests_of_each_kind"].values())
