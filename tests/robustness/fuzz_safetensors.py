"""Fuzz the loading of weights by atheris: changed bytes, headers and lengths of safetensors files and of their index.

The config.json is right; each input changes one of the other files of a small folder, which is then loaded.

    python tests/robustness/fuzz_safetensors.py --seconds 600 --seed 1
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing


def begin(atheris: Any) -> Callable[[bytes], None]:
    """Make what is called with each input."""
    with atheris.instrument_imports(include=["hf_projclust"]):
        import oracles
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    above = Path(tempfile.mkdtemp(dir="."))
    folders, shapes = [], {}
    for name, model in oracles.small_models().items():
        for size in ("1GB", "20KB"):
            folders.append(above / f"{name}-{size}")
            model.save_pretrained(folders[-1], max_shard_size=size)
            shapes[folders[-1]] = {key: tensor.shape for key, tensor in model.state_dict().items()}
    outcomes: list[bool] = []

    def header_changed(data: Any, content: bytes) -> bytes:
        header, rest = oracles.header_of(content)
        for _ in range(data.ConsumeIntInRange(1, 3)):
            one, other = (data.PickValueInList([name for name in header if name != "__metadata__"]) for _ in range(2))
            kind = data.ConsumeIntInRange(0, 3)
            if kind == 0:
                header[one], header[other] = header[other], header[one]
            elif kind == 1:
                header[f"{one}{data.ConsumeUnicodeNoSurrogates(3)}"] = header.pop(one)
            elif kind == 2 and isinstance(header[one], dict):
                header[one]["dtype"] = data.PickValueInList(
                    ["F32", "I32", "U32", "F16", "BF16", "U8", "I8", "BOOL", "I64"]
                )
            else:
                where = data.PickValueInList(list(oracles.places(header)))
                header = oracles.replaced(header, where, data.PickValueInList(oracles.INTERESTING))
            if not isinstance(header, dict) or len(header) < 2:
                break
        return oracles.with_header(header, rest)

    def bytes_changed(data: Any, content: bytes, first: int) -> bytes:
        changed = bytearray(content)
        for _ in range(data.ConsumeIntInRange(1, 8)):
            changed[data.ConsumeIntInRange(first, len(content) - 1)] = data.ConsumeIntInRange(0, 255)
        return bytes(changed)

    def test_one(content: bytes) -> None:
        data = atheris.FuzzedDataProvider(content)
        folder = data.PickValueInList(folders)
        path = data.PickValueInList(sorted(folder.glob("*.safetensors*")))
        before, is_index = path.read_bytes(), path.suffix == ".json"
        kind = data.ConsumeIntInRange(0, 9)
        if kind == 0:
            after = before[: data.ConsumeIntInRange(0, len(before))]
        elif kind == 1:
            after = data.ConsumeBytes(64)
        elif kind == 2 or is_index:
            after = bytes_changed(data, before, first=0)
        elif kind < 6:
            after = bytes_changed(data, before, first=len(before) - len(oracles.header_of(before)[1]))
        else:
            after = header_changed(data, before)
        try:
            path.write_bytes(after)
            fuzzing.count(outcomes, oracles.refused_or_whole_weights(folder, shapes[folder]))
        finally:
            path.write_bytes(before)

    return test_one


if __name__ == "__main__":
    fuzzing.main("fuzz_safetensors", __file__, begin)
