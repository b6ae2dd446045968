"""How compressed models are saved: all files in one step, checked against what a reload would make of them.

Overridden of Transformers' models: ``state_dict``, ``save_pretrained``, ``barrier_after_gathered_checkpoint_save``,
``_upload_modified_files``. This file travels with a checkpoint: it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedModel

from .checks_projclust import check_tables, note_tables
from .table_projclust import FactoredTable, in_place_of_dense_weight
from .vocabulary_projclust import factored_tables
from .whole_folder_projclust import WholeFolder

_SAVE: ContextVar[WholeFolder | None] = ContextVar("what this thread is saving", default=None)

if TYPE_CHECKING:
    _NativeModel = PreTrainedModel
else:
    _NativeModel = object


class SavingMixin(_NativeModel):
    """What a made model class adds to its native base to save."""

    config: Any
    write_card: ClassVar[Any] = (
        None  # writes the card of a saved folder; hf_projclust sets it, a checkpoint's code has none
    )
    _tied_rows: dict[str, str]  # buffers of tied modules, each with that of the module whose row order it copies

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in the native class; what stands for the dense weights is for files, and for models around this one."""
        state = super().state_dict(*args, **kwargs)
        if not args and kwargs.get("destination") is None:
            for name, module in self.named_modules(remove_duplicate=False):
                if isinstance(module, FactoredTable):
                    state.pop(f"{kwargs.get('prefix', '')}{name}.weight")
        return state

    def save_pretrained(
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        standalone: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as the native class does, and on demand with the code that loads the model.

        The folder gets all files at the end, in one step: a process that is killed leaves the old ones or the new
        ones, and a model may be saved over the folder that it was loaded from. What else the folder holds stays.
        Under the name of each dense weight that is not there, the file has one byte, by which native classes refuse
        it.

        Args:
            save_directory: Folder to save in.
            is_main_process: As in the native class.
            state_dict: As in the native class.
            push_to_hub: As in the native class.
            *args: As in the native class.
            standalone: Whether to add the code, so that the Auto classes load the folder by ``trust_remote_code=True``
                where hf_projclust is not installed. By default it is added if the model was loaded from such a folder.
            **kwargs: As in the native class.

        Raises:
            ValueError: If a factored module was replaced, or one that is tied to another has factors of its own, for
                which the file has no place.
            NotADirectoryError: If the folder is a file.
            OSError: If the disk is full; the folder is then as it was.
        """
        if not getattr(self, "_hf_peft_config_loaded", False):  # then only the adapters are saved
            check_tables(self)
            note_tables(self)
            stored = [name for name in factored_tables(self) if f"{name}.rows" not in self._tied_rows]
            marks = {f"{name}.weight": in_place_of_dense_weight() for name in stored}
            state_dict = (self.state_dict() if state_dict is None else state_dict) | marks
        with self.config.standalone(standalone), contextlib.ExitStack() as stack:
            if push_to_hub:  # else it would be that of the hidden folder
                kwargs.setdefault("repo_id", Path(save_directory).name)
            if not kwargs.get("distributed_checkpoint"):  # of which each process writes its part
                save = stack.enter_context(WholeFolder.saved(save_directory))
                stack.callback(_SAVE.reset, _SAVE.set(save))
                save_directory = str(save.partial)  # some native classes take nothing else
            super().save_pretrained(save_directory, is_main_process, state_dict, push_to_hub, *args, **kwargs)

    def barrier_after_gathered_checkpoint_save(self, distributed_config: Any) -> None:
        """Put in place what was saved before other processes, which wait here, go on to read it."""
        if (save := _SAVE.get()) is not None:
            save.put_in_place()
        super().barrier_after_gathered_checkpoint_save(distributed_config)

    def _upload_modified_files(
        self,
        working_dir: str | PathLike[str],
        repo_id: str,
        files_timestamps: dict[str, float],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Upload a saved folder, with the model's card in place of the one that Transformers has just written."""
        working_dir, existing = Path(working_dir), None
        card = working_dir / "README.md"
        has_card = self.write_card is not None and not getattr(self, "_hf_peft_config_loaded", False)
        if (save := _SAVE.get()) is not None:
            new_card, saved = card, {path.name for path in working_dir.iterdir()}
            working_dir, card = save.folder, save.folder / "README.md"
            existing = card.read_bytes() if card.is_file() else None
            if existing is not None and has_card:
                new_card.write_bytes(existing)  # what is in it is kept, whatever comes
            save.put_in_place()  # first: an upload may fail
            others = [path for path in working_dir.iterdir() if path.name not in saved]
            files_timestamps = {path.name: path.stat().st_mtime for path in others}
        try:
            if has_card:
                self.write_card(working_dir, repo_id=repo_id, existing=existing)
            return super()._upload_modified_files(working_dir, repo_id, files_timestamps, *args, **kwargs)
        except BaseException:
            if existing is not None:
                card.write_bytes(existing)
            raise
