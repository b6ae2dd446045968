"""Classifiers of the protocol: dense ones, fine-tuned once and kept while they are needed, and compressed ones.

Of a compressed classifier only the factors are kept, for its cell after more fine-tuning, since the rest is in the
dense one. All of it is made again, to the same bits on one machine's CPU, where it is not there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from ...compression import compress
from ...configuration_projclust import ProjClustConfig
from ...folders import new_folder
from ...modeling_projclust import projclust_model_class
from ...token_counts import count_tokens, describe_sources, names_files
from ..classifiers import fine_tune, make_classifier
from ..glue import Examples
from ..whole_files import whole_file
from .methods import METHODS, compress_options
from .plan import Cell, Protocol


def fine_tune_more(
    model: Any, tokenizer: Any, train: Examples, protocol: Protocol, *, num_epochs: float, seed: int
) -> None:
    """Fine-tune a classifier in place by the protocol's options."""
    fine_tune(
        model,
        tokenizer,
        train,
        num_epochs=num_epochs,
        learning_rate=protocol.learning_rate,
        batch_size=protocol.batch_size,
        max_length=protocol.max_length,
        seed=seed,
        bf16=protocol.bf16,
    )


class ClassifierStore:
    """Classifiers of the protocol.

    Args:
        folder: Where they are kept.
        protocol: The options.
        tokenizer: Tokenizer of the base model.
        train: Examples to train on, of each task.
    """

    def __init__(self, folder: Path, protocol: Protocol, tokenizer: Any, train: Mapping[str, Examples]) -> None:
        """Load nothing yet."""
        self.folder, self.protocol, self.tokenizer, self.train = folder, protocol, tokenizer, train
        self._shares: Tensor | None = None

    def dense(self, task: str, seed: int) -> tuple[Any, str, float]:
        """The dense classifier of a task and seed, fine-tuned if it is not there or was on other examples.

        Args:
            task: Name of the task.
            seed: Seed of head, order and dropout.

        Returns:
            The classifier, the digest of its weights, and the seconds of its fine-tuning.
        """
        folder, examples_sha256 = self._folder(task, seed), self.train[task].sha256()
        noted = folder / "examples_sha256"  # which a folder of an earlier version lacks
        is_of_others = noted.is_file() and noted.read_text(encoding="utf-8") != examples_sha256
        if is_of_others or not (folder / "config.json").is_file():
            model = make_classifier(self.protocol.base, task, seed=seed).to(self._device)
            begin = time.perf_counter()
            epochs = self.protocol.epochs
            fine_tune_more(model, self.tokenizer, self.train[task], self.protocol, num_epochs=epochs, seed=seed)
            seconds = time.perf_counter() - begin
            with new_folder(folder, force=True) as partial:
                model.save_pretrained(partial)
                (partial / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
                (partial / noted.name).write_text(examples_sha256, encoding="utf-8")
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(self._device)
        return model, weights_sha256(model), json.loads((folder / "seconds.json").read_text(encoding="utf-8"))

    def compressed(self, cell: Cell, dense: Any, digest: str) -> tuple[Any, float]:
        """A compressed classifier, by its kept factors if they are there.

        Args:
            cell: Its task, seed, method and rate.
            dense: The dense classifier, which is left untouched.
            digest: Digest of its weights.

        Returns:
            The classifier, and the seconds of its compression.
        """
        path = self._factors(cell)
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                noted = json.loads(file.metadata()["noted"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            if noted["dense_sha256"] == digest:
                return _with_factors(dense, ProjClustConfig.from_dict(noted["config"]), tensors), noted["seconds"]
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            texts = Path(folder) / f"{cell.task}-train.txt"
            texts.write_text("\n".join(_lines(self.train[cell.task])), encoding="utf-8")
            given = self.protocol.token_counts
            options = compress_options(
                cell.method, float(cell.rate or 0), cell.seed, token_counts=given, task_texts=texts
            )
            model = self._compress(dense, options)
        seconds = time.perf_counter() - begin
        if cell.stage == "before" and self.protocol.extra_epochs:
            own = {name: tensor for name, tensor in model.state_dict().items() if name not in dense.state_dict()}
            config = json.loads(model.config.to_json_string(use_diff=False))
            noted = {"dense_sha256": digest, "seconds": seconds, "config": config}
            with whole_file(path) as partial:
                save_file(
                    {name: tensor.contiguous() for name, tensor in own.items()}, partial, {"noted": json.dumps(noted)}
                )
        return model, seconds

    def _compress(self, dense: Any, options: dict[str, Any]) -> Any:
        """Compress, with the sources that are the same in all cells counted once, and recorded by their names."""
        sources = options.get("token_counts")
        if sources != list(self.protocol.token_counts):
            return compress(dense, tokenizer=self.tokenizer, **options)
        shares = self._counted(dense.get_input_embeddings().weight.shape[0])
        model = compress(dense, tokenizer=self.tokenizer, **{**options, "token_counts": shares})
        for record in model.config.projclust["solver"].values():
            record["token_counts"] = describe_sources(sources)
        return model

    def token_counts_sha256(self, vocab_size: int) -> str | None:
        """Digest of the shares that are counted in files.

        Args:
            vocab_size: Rows of the table.

        Returns:
            The digest, in hexadecimal digits; None where no method takes the given sources or these name no files.
        """
        is_counted = any(METHODS[method].counts == "given" for method in self.protocol.methods)
        if not is_counted or not names_files(self.protocol.token_counts):
            return None
        return hashlib.sha256(self._counted(vocab_size).numpy().tobytes()).hexdigest()

    def _counted(self, vocab_size: int) -> Tensor:
        if self._shares is None:
            self._shares = count_tokens(list(self.protocol.token_counts), self.tokenizer, vocab_size)
        return self._shares

    def drop_factors(self, cell: Cell) -> None:
        """Delete the kept factors of a compressed classifier whose cells are all made."""
        self._factors(cell).unlink(missing_ok=True)

    def drop(self, task: str, seed: int) -> None:
        """Delete what is kept of a task and seed whose cells are all made."""
        shutil.rmtree(self._folder(task, seed), ignore_errors=True)

    @property
    def _device(self) -> torch.device:
        return torch.device(self.protocol.device or "cpu")

    def _folder(self, task: str, seed: int) -> Path:
        return self.folder / f"{task}-{seed}"

    def _factors(self, cell: Cell) -> Path:
        return self._folder(cell.task, cell.seed) / f"factors-{cell.method}-{cell.rate}.safetensors"


def weights_sha256(model: Any) -> str:
    """Digest of names, dtypes, shapes and numbers of the weights of a model, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _with_factors(dense: Any, config: Any, factors: dict[str, Tensor]) -> Any:
    """The compressed counterpart of a dense classifier, from its factors."""
    made = projclust_model_class(type(dense), type(config))
    places = {name.rpartition(".")[0] for name in factors}
    rest = {
        name: tensor.clone()
        for name, tensor in dense.state_dict().items()
        if not (name.endswith(".weight") and name.removesuffix(".weight") in places)
    }
    model = made.from_pretrained(None, config=config, state_dict=rest | factors, dtype=dense.dtype)
    return model.to(dense.device)


def _lines(examples: Examples) -> Iterator[str]:
    return (" ".join(text.splitlines()) for text in examples.texts())
