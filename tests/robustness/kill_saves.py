"""Kills processes that save, compress and push, and looks at what is left: the old checkpoint or the new one, whole.

    python tests/robustness/kill_saves.py --kills 200 --seed 0

Each process replaces a whole checkpoint by another one of other shapes and other files, and is killed (SIGKILL) at a
random moment, or, for all moments that a kill could tell from its neighbours, before each change of a file or folder.
Linux and macOS: processes are forked, so that none has to import torch again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import HUB, TINY_MODELS

# isort: split
import warnings

import torch
from transformers.utils import logging

from hf_projclust import compress
from hf_projclust.saving import save_compressed

OPERATIONS = ("save", "compress", "push")
_CHANGES = ("os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.listdir", "os.scandir")
_WRITES = os.O_WRONLY | os.O_RDWR
_CARD = ("README.md", "clusters.png")  # written when the model is in place, and again by a push
_OWN_WORDS = "Words of mine in a card."


@dataclass
class Scene:
    """A folder with a checkpoint, and the operations that replace it."""

    root: Path
    old: dict[str, str]
    new: dict[str, dict[str, str]]
    operations: dict[str, Callable[[], Any]]

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""
        return self.root / "checkpoint"

    def restore(self) -> None:
        """Put the old checkpoint back, and nothing beside it."""
        for path in self.root.iterdir():
            if path.name not in ("pristine", "dense"):
                shutil.rmtree(path)
        shutil.copytree(self.root / "pristine", self.folder)


def prepare(root: Path) -> Scene:
    """An old checkpoint in shards, with other files beside it, and what each operation makes of it."""
    tiny = TINY_MODELS["bert"]
    old, new = tiny.compressed(compression=0.6), tiny.compressed(compression=0.3)
    tiny.build().save_pretrained(root / "dense")
    (root / "dense/notes.txt").write_text("of the dense model")
    old.save_pretrained(root / "pristine", max_shard_size="8kB")
    for name, text in (("notes.txt", "kept"), ("README.md", f"---\nlicense: mit\n---\n\n{_OWN_WORDS}\n")):
        (root / "pristine" / name).write_text(text)
    folder = root / "checkpoint"

    def run_compress() -> None:
        model = compress(root / "dense", num_clusters=2, compression=0.5, token_counts="uniform")
        save_compressed(model, root / "dense", folder, compare=False, standalone=None, force=True)

    operations: dict[str, Callable[[], Any]] = {
        "save": lambda: new.save_pretrained(folder),
        "compress": run_compress,
        "push": lambda: new.save_pretrained(folder, push_to_hub=True, repo_id="alice/model", token="hf_alice"),
    }
    scene = Scene(root, digests(root / "pristine"), {}, operations)
    for name, operation in operations.items():
        scene.restore()
        operation()
        scene.new[name] = digests(folder)
    return scene


def digests(folder: Path) -> dict[str, str]:
    """What is in each file of a folder, but for the card and for hidden files, which nothing reads."""
    names = [path for path in folder.rglob("*") if path.name not in _CARD and not path.name.startswith(".")]
    files = [path for path in names if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_killed(operation: Callable[[], Any], *, after: float | None = None, before_change: int | None = None) -> bool:
    """Run an operation in a process that is killed.

    Args:
        operation: What to run.
        after: Seconds after which to kill it.
        before_change: Number of the change of a file or folder before which to kill it, from 0.

    Returns:
        Whether it was killed before it had ended.
    """
    process = os.fork()
    if process == 0:
        if before_change is not None:
            sys.addaudithook(_killer(before_change))
        try:
            operation()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(process, signal.SIGKILL)  # it is not waited for yet, so the number is still its own
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise RuntimeError("the operation failed without being killed; expected it to work. Run it in this process.")
    return os.WIFSIGNALED(status)


def _killer(number: int) -> Callable[[str, tuple[Any, ...]], None]:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    return hook


def outcome(scene: Scene, name: str) -> str:
    """Which checkpoint is in the folder: "old" or "new"; or what is wrong."""
    if not scene.folder.is_dir():
        return "nothing"
    found = digests(scene.folder)
    if name == "push" and _OWN_WORDS not in (scene.folder / "README.md").read_text(encoding="utf-8"):
        return "a card without its words"
    return "old" if found == scene.old else "new" if found == scene.new[name] else f"a mixture: {sorted(found)}"


def kill_at_random(scene: Scene, name: str, kills: int, seed: int) -> Counter[str]:
    """Kill an operation at random moments of its run, and count what is left."""
    scene.restore()
    begin = time.perf_counter()
    run_killed(scene.operations[name])
    seconds, draw, found = time.perf_counter() - begin, random.Random(f"{seed} {name}"), Counter[str]()
    while found.total() < kills:
        scene.restore()
        if run_killed(scene.operations[name], after=draw.uniform(0, seconds)):
            found[outcome(scene, name)] += 1
    return found


def kill_before_each_change(scene: Scene, name: str) -> Counter[str]:
    """Kill an operation before each change that it makes of a file or folder, and count what is left."""
    found = Counter[str]()
    while True:
        scene.restore()
        if not run_killed(scene.operations[name], before_change=found.total()):
            return found
        found[outcome(scene, name)] += 1


def main() -> int:
    """Print what was left; fail if it was anything but the old checkpoint or the new one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of each operation, at random moments")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork has no other threads
    logging.disable_progress_bar()
    # how huggingface_hub sends a large file without Xet
    warnings.filterwarnings("ignore", "Use 'content=<...>' to upload raw bytes", DeprecationWarning)
    HUB.users["hf_alice"] = "alice"
    is_whole = True
    with tempfile.TemporaryDirectory() as root:
        scene = prepare(Path(root))
        for name in OPERATIONS:
            for moments, found in (
                ("at random", kill_at_random(scene, name, options.kills, options.seed)),
                ("before each change", kill_before_each_change(scene, name)),
            ):
                print(f"{name}, killed {moments}: {found.total()} kills, {dict(found)}", flush=True)  # noqa: T201
                is_whole &= set(found) <= {"old", "new"}
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
