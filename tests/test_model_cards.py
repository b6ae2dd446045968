"""The cards in the repository: those that were rendered, and the recipes."""

import re
from pathlib import Path

import pytest
from conftest import run_cli, with_validation
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM

CARDS = sorted((Path(__file__).parents[1] / "model_cards").glob("*/README.md"))
OF_RATES = [path for path in CARDS if path.parent.name.rpartition("-")[2].isdecimal()]
SCRIPT = (CARDS[0].parents[1] / "render.sh").read_text()


@with_validation
@pytest.mark.usefixtures("hub")
def test_the_cards_of_the_repository_pass_the_check_and_name_the_command_that_made_them() -> None:
    assert [path.parent.name.rpartition("-")[2] for path in CARDS] == ["16x", "20", "40", "60", "80"]
    for path in CARDS:
        card = ModelCard.load(path)
        card.validate()
        assert path.with_name("clusters.png").stat().st_size > 10_000
        assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
        assert not re.search(r"/(tmp|home|root|work|usr)/", str(card))
        options = re.search(r"^hf-projclust compress \S+ (.*) --seed 0 --output", str(card), re.MULTILINE)[1]
        size, number, rest = options.split(" ", 2)
        assert float(number) in [float(word) for word in re.search(rf"{size} ([\d. ]+)", SCRIPT)[1].split()]
        assert rest in SCRIPT


def test_the_cards_of_several_rates_agree_with_one_another() -> None:
    cards = [ModelCard.load(path) for path in OF_RATES]
    tables = {card.text.partition("## Other sizes of this model\n\n")[2] for card in cards}
    assert len(tables) == 1
    for path, card in zip(OF_RATES, cards, strict=True):
        name, parameters, file, _, error, cosine = (
            cell.strip() for cell in re.search(rf"\| ({path.parent.name} \|.*) \|", card.text)[1].split("|")
        )
        assert card.text.startswith(f"\n# {name}\n")
        assert f"| Factored tables, parameters | 11,720,448 | {parameters} |" in card.text
        assert f"| Model file | 90.9 MB | {file} |" in card.text
        assert f"of the vocabulary table: {error}." in card.text
        assert f"to those of the dense model: {cosine}, on" in card.text
        assert [result.metric_value for result in card.data.eval_results] == [float(cosine)]


@pytest.mark.parametrize("name", ["distilbert-pc-k5", "roberta-pc-k5"])
def test_recipes_have_a_command_that_is_understood_and_no_figure(name: str, base: Path) -> None:
    text = (Path(__file__).parents[1] / f"model_cards/{name}.md").read_text()
    command = re.search(r"^hf-projclust (compress .*)$", text, re.MULTILINE)[1].split()
    command[1] = str(base)
    run_cli(*command)
    layout = AutoModelForMaskedLM.from_pretrained(name).config.factor_layouts["embedding"]
    assert len(layout.cluster_ranks) == 5
    figures = set(re.findall(r"\d[\d.,%]*\d", text)) - {"2010.04290", "0.4", "40"}
    assert not figures
