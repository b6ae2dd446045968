"""What must hold of any configuration and any weights, however they were changed: refused by our error, or whole.

The inputs are made elsewhere, by hypothesis and by atheris.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from hf_projclust import ProjClustCheckpointError, ProjClustConfig, compress

NUM_TOKENS, DIM = 530, 16  # enough tokens for a codebook
INTERESTING: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 15, 16, 17, 255, 256, 257, 529, 530, 531, 2**31 - 1, 2**31, 2**63, -(2**63)),
    *(10**12, 10**18, 10**30, 10**400, 0.0, 1.0, -0.5, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", "16", "embedding", "../x", "\x00", "é", [], {}, [[]], [0], [None], [530], [265, 265], [16], {"a": 1}),
    *([{"num_coordinates": 4, "per_byte": 2, "basis_bits": 8}], [[], []], [1] * 300, {"dim": 16}),
]


def small_models() -> dict[str, Any]:
    """A compressed model with float factors and one in few bits, small and quick to load."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
    )
    dense = BertForMaskedLM(config).eval()
    options: dict[str, Any] = {"num_clusters": 2, "rank": 6, "token_counts": "uniform", "max_rounds": 2}
    return {"float": compress(dense, **options), "packed": compress(dense, **options, coefficient_bits=4)}


def places(fields: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a JSON value."""
    yield above
    pairs = fields.items() if isinstance(fields, dict) else enumerate(fields) if isinstance(fields, list) else ()
    for key, value in pairs:
        yield from places(value, (*above, key))


def replaced(fields: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a JSON value with another value in one place."""
    if not place:
        return value
    made = copy.copy(fields)
    made[place[0]] = replaced(fields[place[0]], place[1:], value)
    return made


def refused_or_whole_configuration(fields: dict[str, Any]) -> bool:
    """Read a config.json's fields and build the model; whether it was refused."""
    try:
        config = ProjClustConfig.from_dict(copy.deepcopy(fields))
        model = AutoModel.from_config(config)
    except ProjClustCheckpointError as error:
        if "fetch" in str(error).lower() or "Install" in str(error):
            return True
        raise
    layouts = config.factor_layouts
    if "embedding" in layouts:
        table = model.get_input_embeddings()
        assert table.layout == layouts["embedding"]
        rows, bases = sum(table.layout.coefficient_counts), sum(table.layout.basis_ranks)
        if "cluster_bands" in fields["projclust"]["embedding"]:
            assert {name: getattr(table, name).nbytes for name in table.stored_names} == table.layout.num_bytes(4)
        else:
            assert (table.coefficients.shape, table.bases.shape) == ((rows,), (bases, DIM))
    return False


def refused_or_whole_weights(folder: Path, shapes: dict[str, torch.Size]) -> bool:
    """Load a folder whose config.json is right; whether it was refused."""
    try:
        model = AutoModelForMaskedLM.from_pretrained(folder)
    except ProjClustCheckpointError:
        return True
    except RuntimeError as error:  # Transformers' own refusal of native weights of another shape
        if "ignore_mismatched_sizes" in str(error) or "raising an error" in str(error):
            return True
        raise
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert model.get_input_embeddings().damage() is None
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    return False


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes after it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(header: Any, rest: bytes) -> bytes:
    """A safetensors file of a header and the bytes after it."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest
