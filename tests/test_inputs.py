"""What compress and decompress are given by path, and configurations that no compressed model can be built from."""

from pathlib import Path

import pytest
from conftest import COMPRESSED, TINY_MODELS
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, BitsAndBytesConfig
from typer.testing import CliRunner

from hf_projclust import ProjClustCheckpointError, cli, compress, decompress, modeling_projclust
from hf_projclust.sizes import measure


@pytest.fixture
def quantised(tmp_path: Path) -> dict[str, Path]:
    """Folders of a dense and of a compressed model, the rest in 8 bits."""
    folders = {"dense": tmp_path / "dense", "compressed": tmp_path / "compressed"}
    dense = TINY_MODELS["bert"].build()
    for model, folder in ((dense, folders["dense"]), (compress(dense, **COMPRESSED), folders["compressed"])):
        model.save_pretrained(tmp_path / "float" / folder.name)
        eight_bits = BitsAndBytesConfig(load_in_8bit=True)
        loaded = AutoModelForMaskedLM.from_pretrained(
            tmp_path / "float" / folder.name, quantization_config=eight_bits, device_map="cpu"
        )
        loaded.save_pretrained(folder)
    return folders


def test_quantised_folders_are_refused_as_quantised_models_are(quantised: dict[str, Path]) -> None:
    for read in (lambda: compress(quantised["dense"], **COMPRESSED), lambda: decompress(quantised["compressed"])):
        with pytest.raises(ValueError, match="BertForMaskedLM is quantised; expected float weights"):
            read()
    with pytest.raises(ValueError, match="is quantised; expected float weights. Compress the model that it was made"):
        compress(quantised["dense"], **COMPRESSED, memory_limit="1MB")


def test_a_native_configuration_builds_no_compressed_model() -> None:
    made = modeling_projclust.ProjClustBertForMaskedLM
    with pytest.raises(ProjClustCheckpointError, match="built from a BertConfig; expected a ProjClustBertConfig"):
        made(BertConfig(**TINY_MODELS["bert"].config.to_dict()))


@pytest.mark.parametrize("embedding", [True, False])
def test_a_body_without_the_head_of_its_file_has_the_sizes_of_what_it_has(embedding: bool, tmp_path: Path) -> None:
    model = compress(TINY_MODELS["llama"].build(), **COMPRESSED, embedding=embedding, head=True)
    model.save_pretrained(tmp_path / "whole")
    body = AutoModel.from_pretrained(tmp_path / "whole")
    body.save_pretrained(tmp_path / "body")
    _, sizes = measure(tmp_path / "body")
    layouts = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").config.factor_layouts
    assert sizes.table_parameters == (layouts["embedding"].num_parameters if embedding else 0)
    assert sizes.model_parameters == body.num_parameters()
    assert CliRunner().invoke(cli.app, ["info", str(tmp_path / "body")]).exit_code == 0
