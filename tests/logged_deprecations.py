"""What libraries log of their deprecations, which no filter of warnings sees.

Keeps each such message from the first import on, of every logger of the libraries that this package stands on. It does
not raise where one is logged, since libraries catch what is raised there; ``conftest`` fails the test that it came in.
"""

import logging
import re

LIBRARIES = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "peft",
    "safetensors",
    "sentence_transformers",
    "torch",
    "transformers",
)
_DEPRECATION = re.compile(r"deprecat|\b(?:will|to) be removed\b|no longer be supported", re.IGNORECASE)
# What a library does itself, and nothing here can help.
_ALLOWED = re.compile(
    r"register_constant\(\) on Enum subclasses"  # torchao, as it is imported
    # assisted decoding of Transformers, which gives its assistant both
    r"|^Passing `generation_config` together with (?=.*'min_new_tokens')(?=.*'use_cache')"
)


class _Keeper(logging.Handler):
    """Keeps the text of each deprecation, with the logger that it came by."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if _DEPRECATION.search(message := record.getMessage()) and not _ALLOWED.search(message):
            self.messages.append(f"{record.name} logs: {message}")


_KEEPER = _Keeper()
for _name in LIBRARIES:
    logging.getLogger(_name).addHandler(_KEEPER)


def forget_what_was_said_once() -> None:
    """Let messages that are logged once a process come again, so that no test depends on those before it."""
    logging.Logger.warning_once.cache_clear()  # type: ignore[attr-defined]


def taken() -> list[str]:
    """The messages since the last call."""
    messages, _KEEPER.messages = _KEEPER.messages, []
    return messages
