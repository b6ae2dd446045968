"""Output folders that are whole or absent, and the files that go along with a model.

A folder is written beside its destination and put in place by a rename at the end. A run that is interrupted
removes what it has written; one that is killed leaves at most a hidden folder, never a half-written output.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import snapshot_download

from .whole_folder_projclust import exchange, hidden_beside

# Tokenizers and processors are a few kinds of small files at the top; the modules of a sentence-transformers
# model are numbered folders. Weights, training states and the base model's card stay behind.
_COMPANION_FILES = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "*.spm",
    "*.codes",
    "*.bpe",
    "*.tokenizer",
    "LICENSE*",
)
_COMPANION_FOLDERS = ("[0-9]_*", "additional_chat_templates")
_NOT_COMPANIONS = ("config.json", "generation_config.json", "*.index.json", "trainer_state.json", "adapter_*")


def check_output(output: Path, source: str | Path, *, force: bool) -> None:
    """Refuse an output folder before any work is done for it.

    Args:
        output: The folder to be written.
        source: The folder or Hub id that the model is read from.
        force: Whether a folder that holds something may be replaced.

    Raises:
        FileExistsError: If the output is a file, or holds something and ``force`` is off.
        PermissionError: If the output cannot be made where it is to be.
        ValueError: If replacing the output would delete the source or the current folder.
    """
    for kept in (Path(source), Path.cwd()):
        if kept.is_dir() and output.resolve() in (kept.resolve(), *kept.resolve().parents):
            raise ValueError(
                f"output {str(output)!r} is or holds {str(kept)!r}, which is in use; expected a folder elsewhere, so "
                "that nothing is lost. Choose another --output."
            )
    _check_replaceable(output, force=force)
    parent = next(folder for folder in output.resolve().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK) or output.is_mount():
        raise PermissionError(
            f"output {str(output)!r} cannot be made in {str(parent)!r}; expected a folder that may be written to, and "
            "not a mount point, since the output is put in place by a rename. Choose another --output."
        )


def check_apart(output: Path, checkpoint: Path) -> None:
    """Refuse a checkpoint that would stand in the way of the output, or take it along when it is deleted.

    Args:
        output: The folder to be written.
        checkpoint: The folder that the clustering is saved in meanwhile.

    Raises:
        ValueError: If they are one folder, or one is in the other, whether they are there yet or not.
    """
    one, other = output.resolve(), checkpoint.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(
            f"output {str(output)!r} and checkpoint {str(checkpoint)!r} are one folder, or one is in the other; "
            "expected two folders apart, since the checkpoint is deleted when the model is written. Choose another "
            "--checkpoint."
        )


def _check_replaceable(output: Path, *, force: bool) -> None:
    if output.exists() and not output.is_dir():
        raise FileExistsError(
            f"output {str(output)!r} is a file; expected a folder that is new or empty. Choose another --output."
        )
    if output.is_dir() and any(output.iterdir()) and not force:
        raise FileExistsError(
            f"output {str(output)!r} holds {sum(1 for _ in output.iterdir())} files or folders; expected a folder "
            "that is new or empty. Choose another --output, or replace it with --force."
        )


@contextlib.contextmanager
def new_folder(output: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``output`` if the block ends well.

    Args:
        output: The folder to be made.
        force: Whether a folder that holds something may be replaced; it is, in one step, at the end.

    Yields:
        A hidden folder beside it. On any error or interrupt it is removed and ``output`` is as it was.

    Raises:
        FileExistsError: If something was put at the output meanwhile, and ``force`` is off.
    """
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = hidden_beside(output)
    replaced = partial.with_suffix(".replaced")
    partial.mkdir()
    try:
        yield partial
        _check_replaceable(output, force=force)
        if not (output.exists() and exchange(partial, output)):
            if output.exists():
                output.rename(replaced)
            partial.rename(output)
    except BaseException:
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def copy_companions(source: str | Path, destination: Path) -> None:
    """Copy tokenizer, processor and sentence-transformers files, and the licence, of a model.

    Args:
        source: The folder or Hub id that the model was read from.
        destination: The folder that the model was saved in; files that stand there are kept.
    """
    if Path(source).is_dir():
        folder = Path(source)
    else:
        folders = [f"{pattern}/*" for pattern in _COMPANION_FOLDERS]
        folder = Path(snapshot_download(str(source), allow_patterns=[*_COMPANION_FILES, *folders]))
    for path in companions(folder):
        target = destination / path.name
        if target.exists():
            continue
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)


def companions(folder: Path) -> list[Path]:
    """Files and folders that go along with the model in a folder: as ``copy_companions`` copies them.

    Args:
        folder: Folder of a model.

    Returns:
        Their paths, sorted.

    Raises:
        ValueError: If the list of the modules of sentence-transformers cannot be read.
    """
    folders = {"additional_chat_templates", *_module_folders(folder / "modules.json")}
    return [
        path
        for path in sorted(folder.iterdir())
        if (path.is_dir() and path.name in folders) or (path.is_file() and _is_companion(path.name))
    ]


def _module_folders(modules: Path) -> list[str]:
    """Names of the folders in which sentence-transformers keeps its modules."""
    if not modules.is_file():
        return []
    try:
        paths = [module["path"] for module in json.loads(modules.read_text(encoding="utf-8"))]
        return [Path(path).parts[0] for path in paths if path]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{str(modules)!r} cannot be read ({type(error).__name__}: {error}); expected the list of modules that "
            "sentence-transformers writes. Fetch or save the folder again."
        ) from error


def _is_companion(name: str) -> bool:
    return not name.startswith(".") and _matches(name, _COMPANION_FILES) and not _matches(name, _NOT_COMPANIONS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
