"""How close a compressed model stays to the dense one: what is measured, for every kind of model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS
from transformers import AutoModel

from hf_projclust.evaluation.fidelity import bundled_sentences, measure_fidelity


def test_the_fidelity_is_the_mean_cosine_of_mean_hidden_states(base: Path, folder: Path, tokenizer: Any) -> None:
    bodies = [AutoModel.from_pretrained(path).eval() for path in (base, folder)]
    cosines = []
    for sentence in bundled_sentences():
        inputs = tokenizer(sentence, truncation=True, return_tensors="pt")
        with torch.no_grad():
            one, two = (body(**inputs).last_hidden_state[0].mean(dim=0) for body in bodies)
        cosines.append(float(one @ two / (one.norm() * two.norm())))
    noted = json.loads((folder / "config.json").read_text())["projclust"]["fidelity"]
    assert noted["mean_cosine"] == pytest.approx(sum(cosines) / 50, abs=1e-5)
    assert noted["mean_cosine"] < 0.99


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart", "distilbert"])
def test_the_fidelity_of_a_model_to_itself_is_one_whatever_its_kind(name: str, tokenizer: Any) -> None:
    model = TINY_MODELS[name].build()
    assert measure_fidelity(model, model, tokenizer)["mean_cosine"] == pytest.approx(1, abs=1e-6)
    other = TINY_MODELS[name].compressed(compression=0.8)
    assert 0 < measure_fidelity(model, other, tokenizer)["mean_cosine"] < 0.999


@pytest.mark.parametrize("which", ["dense", "compressed"])
def test_a_model_that_gives_nan_has_no_fidelity(which: str, tokenizer: Any) -> None:
    models = {name: TINY_MODELS["bert"].build() for name in ("dense", "compressed")}
    with torch.no_grad():
        models[which].get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(ValueError, match=f"numbers in sentence embeddings of the {which} model are NaN or infinite"):
        measure_fidelity(models["dense"], models["compressed"], tokenizer)
