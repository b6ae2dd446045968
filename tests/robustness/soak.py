"""Loads and requests until the time is up, and what they leave behind: memory, objects, handles.

    python tests/robustness/soak.py --seconds 600 --loads 1000

Tiny models, float and in few bits, are loaded and dropped, and then asked at random: look-ups, logits of a tied head,
classes, generated tokens, the dense weight that stands for the factors; batches and lengths vary. Figures are printed
as one line of JSON, and the end is an error where something grew. Nothing is compiled, and nothing is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Else torch keeps up to 1,024 operations of oneDNN, one a shape, of dense models too: some ten MB, which is no leak.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")
sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests are no package
from few_bits import NUM_TOKENS, dense_model, packed_model  # before transformers, since it chooses the Hub

# isort: split
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.utils import logging

from hf_projclust import compress

LENGTHS, BATCHES = (1, 36), (1, 8)  # the least and the greatest
# What may grow by chance, since allocators keep some of what they got.
MOST_MEGABYTES, MOST_OBJECTS, MOST_OBJECTS_A_LOAD = 32, 500, 0.5
_AUTO_CLASSES = {
    "bert": AutoModelForMaskedLM,
    "distilbert": AutoModelForSequenceClassification,
    "gpt2": AutoModelForCausalLM,
}


def main() -> None:
    """Run it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long to ask")
    parser.add_argument("--loads", type=int, default=1000, help="how many models to load before it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folders = save_models(Path(folder))
        figures = load_often(folders, arguments.loads) | ask_often(folders, arguments.seconds, arguments.seed)
    print(json.dumps(figures))  # noqa: T201 (a script)
    sys.exit("; ".join(what_grew(figures, arguments.loads)) or None)


def save_models(folder: Path) -> dict[Path, Any]:
    """Folders of tiny models, float and in few bits, with the Auto class of each."""
    folders = {}
    for name, auto_class in _AUTO_CLASSES.items():
        models = {
            "float": compress(dense_model(name), num_clusters=2, compression=0.5, token_counts="uniform", max_rounds=6),
            "few-bits": packed_model(name),
        }
        for kind, model in models.items():
            model.save_pretrained(folder / f"{name}-{kind}")
            folders[folder / f"{name}-{kind}"] = auto_class
    return folders


def load_often(folders: dict[Path, Any], count: int) -> dict[str, Any]:
    """Load models in turn and drop each; figures of the process at the start, after a tenth, and at the end."""
    count = max(count, len(folders) + 1)
    figures, loaded = [], []
    for number in range(count + 1):
        if number in (0, max(len(folders), count // 10), count):
            figures.append(figures_of_process(next(iter(folders)).parent))
        if number < count:
            path, auto_class = list(folders.items())[number % len(folders)]
            model = auto_class.from_pretrained(path)
            model(torch.tensor([[number % NUM_TOKENS]]))
            loaded.append(weakref.ref(model))
            del model
    alive = sum(reference() is not None for reference in loaded)
    return {"loads": count, "models_alive": alive} | across(figures, "loads")


@torch.no_grad()
def ask_often(folders: dict[Path, Any], seconds: float, seed: int) -> dict[str, Any]:
    """Ask all models at random, one request after another; figures as ``load_often`` gives them."""
    chance = random.Random(seed)
    models = [auto_class.from_pretrained(path).eval() for path, auto_class in folders.items()]
    asked = {request.__name__: 0 for request in REQUESTS}
    start = time.monotonic()
    figures = [figures_of_process(next(iter(folders)).parent)]
    while (spent := time.monotonic() - start) < seconds or len(figures) == 1:
        # On a slow machine the first request alone may take all the time: every kind has its turn before growth counts.
        if len(figures) == 1 and spent > seconds / 10 and all(asked.values()):
            figures.append(figures_of_process(next(iter(folders)).parent))
        request, model = chance.choice(REQUESTS), chance.choice(models)
        batch, length = chance.randint(*BATCHES), chance.randint(*LENGTHS)
        answer = request(model, torch.tensor([chance.choices(range(NUM_TOKENS), k=length) for _ in range(batch)]))
        if answer is not None:
            if not bool(answer.isfinite().all()):
                raise ValueError(f"{request.__name__} of {type(model).__name__} gave numbers that are not finite.")
            asked[request.__name__] += 1
    figures.append(figures_of_process(next(iter(folders)).parent))
    return {"requests": sum(asked.values()), "requests_of_each_kind": asked} | across(figures, "requests")


def look_up(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Vectors of tokens."""
    return model.get_input_embeddings()(input_ids)


def forward(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits of a tied head, or of classes."""
    return model(input_ids).logits


def largest_logits(model: Any, input_ids: torch.Tensor) -> torch.Tensor | None:
    """The largest logits of a tied head, without all of them."""
    head = model.get_output_embeddings()
    return None if head is None else head.topk(model.get_input_embeddings()(input_ids), 3)[0]


def generate(model: Any, input_ids: torch.Tensor) -> torch.Tensor | None:
    """Some tokens more, where the model writes."""
    if not model.can_generate():
        return None
    return model.generate(
        input_ids[:, :30], attention_mask=torch.ones_like(input_ids[:, :30]), max_new_tokens=4, pad_token_id=0
    )


def dense_weight(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Rows of what stands for the dense table, and a product with it."""
    weight = model.get_input_embeddings().weight
    return torch.nn.functional.linear(weight[input_ids[0]], weight)


def gradient(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Gradients of what stands in front of the head, which leave no graph behind."""
    with torch.enable_grad():
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(model(input_ids).logits.square().mean(), parameters, allow_unused=True)
    return torch.stack([one.sum() for one in found if one is not None])


REQUESTS: list[Callable[[Any, torch.Tensor], torch.Tensor | None]] = [
    look_up,
    forward,
    largest_logits,
    generate,
    dense_weight,
    gradient,
]


def figures_of_process(folder: Path) -> dict[str, float]:
    """Resident memory, objects that Python keeps, open handles, and maps of files in a folder."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {
        "resident_megabytes": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
        "objects": len(gc.get_objects()),
        "handles": len(os.listdir("/proc/self/fd")),
        "maps_of_files": sum(str(folder) in line for line in maps),
    }


def across(figures: list[dict[str, float]], of: str) -> dict[str, list[float]]:
    """The same figures as lists: at the start, after a tenth, and at the end."""
    return {f"{name}_of_{of}": [figure[name] for figure in figures] for name in figures[0]}


def what_grew(figures: dict[str, Any], loads: int) -> list[str]:
    """What is not as it was after a tenth of the loads, or of the time; empty if nothing leaks."""
    grew = [f"{figures['models_alive']} models are alive that were dropped"] if figures["models_alive"] else []
    for of in ("loads", "requests"):
        for name, most in (
            ("resident_megabytes", MOST_MEGABYTES),
            ("objects", MOST_OBJECTS + (MOST_OBJECTS_A_LOAD * loads if of == "loads" else 0)),
            ("handles", 0),
            ("maps_of_files", 0),
        ):
            _, early, late = figures[f"{name}_of_{of}"]
            if late - early > most:
                grew.append(f"{name} grew from {early:g} to {late:g} over {of}")
    return grew


if __name__ == "__main__":
    main()
