"""Fuzz the reader of configurations by atheris, guided by the coverage of this package.

Each input replaces up to four values within the config.json of a small model; the model is then built without weights.

    python tests/robustness/fuzz_config.py --seconds 600 --seed 1
"""

import json
from collections.abc import Callable
from typing import Any

import fuzzing


def begin(atheris: Any) -> Callable[[bytes], None]:
    """Make what is called with each input."""
    with atheris.instrument_imports(include=["hf_projclust"]):
        import oracles
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    bases = [json.loads(model.config.to_json_string()) for model in oracles.small_models().values()]
    outcomes: list[bool] = []

    def value(data: Any, fields: Any) -> Any:
        kind = data.ConsumeIntInRange(0, 7)
        if kind == 0:
            return data.ConsumeInt(8)
        if kind == 1:
            return data.ConsumeFloat()
        if kind == 2:
            return data.ConsumeUnicodeNoSurrogates(12)
        if kind == 3:
            return [data.ConsumeIntInRange(-1, 600) for _ in range(data.ConsumeIntInRange(0, 5))]
        if kind == 4:  # what stands elsewhere in it
            found = fields
            for key in data.PickValueInList(list(oracles.places(fields))):
                found = found[key]
            return found
        return data.PickValueInList(oracles.INTERESTING)

    def test_one(content: bytes) -> None:
        data = atheris.FuzzedDataProvider(content)
        fields = data.PickValueInList(bases)
        section = fields["projclust"]
        for _ in range(data.ConsumeIntInRange(1, 4)):
            where = data.PickValueInList(list(oracles.places(section)))
            section = oracles.replaced(section, where, value(data, section))
        fuzzing.count(outcomes, oracles.refused_or_whole_configuration({**fields, "projclust": section}))

    return test_one


if __name__ == "__main__":
    fuzzing.main("fuzz_config", __file__, begin)
