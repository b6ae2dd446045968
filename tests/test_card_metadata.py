"""The metadata of a model card: what comes from the base model, what a person states, and what is never guessed."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_MODELS, run_cli, save
from huggingface_hub import EvalResult, ModelCard

from hf_projclust import compress
from hf_projclust.cards import write_card


def test_a_name_of_ones_own_in_the_model_index_stays(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    card.data.model_name = "Our model"
    card.save(folder / "README.md")
    write_card(folder)
    assert ModelCard.load(folder / "README.md").data.model_name == "Our model"


def test_a_card_that_says_it_was_trained_claims_no_fidelity(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("- projclust\n", "- projclust\n- generated_from_trainer\n"))
    write_card(folder)
    assert ModelCard.load(folder / "README.md").data.eval_results is None


def test_a_base_without_a_card_has_an_unknown_licence_that_is_seen(base: Path) -> None:
    (base / "README.md").unlink()
    run_cli("compress", base, "--rank", 4, "--output", "out")
    card = ModelCard.load("out/README.md")
    assert (card.data.license, card.data.license_name, card.data.language) == ("other", "unknown", None)
    assert "## Licence\n\n**Unknown.**" in card.text


def test_a_licence_of_its_own_name_is_carried_over(base: Path) -> None:
    terms = {"license": "other", "license_name": "llama3", "license_link": "https://llama.example/license"}
    (base / "README.md").write_text(f"---\n{json.dumps(terms)}\n---\n")
    run_cli("compress", base, "--rank", 4, "--output", "out")
    card = ModelCard.load("out/README.md")
    assert {name: getattr(card.data, name) for name in terms} == terms
    assert "That of the base model: llama3 (https://llama.example/license)." in card.text


def test_a_licence_that_is_stated_in_the_card_replaces_the_unknown_one(base: Path) -> None:
    (base / "README.md").unlink()
    run_cli("compress", base, "--rank", 4, "--output", "out")
    card = ModelCard.load("out/README.md")
    card.data.license, card.data.license_name = "mit", None
    card.save("out/README.md")
    write_card("out")
    card = ModelCard.load("out/README.md")
    assert (card.data.license, card.data.license_name) == ("mit", None)
    assert "As the publisher states it: mit." in card.text


def test_the_own_terms_of_the_base_are_not_mixed_with_a_licence_that_is_stated(base: Path) -> None:
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\nlicense_link: https://a.b\n---\n")
    run_cli("compress", base, "--rank", 4, "--output", "out")
    Path("out/README.md").write_text(
        "---\nlicense: mit\nlanguage: fr\nlibrary_name: keras\nmodel-index: []\n---\n# Mine\n"
    )
    write_card("out")
    card = ModelCard.load("out/README.md")
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("mit", None, None)
    assert (card.data.language, card.data.library_name) == (["fr"], "keras")


@pytest.mark.parametrize("broken", ["---\nlicense: [\n---\n", "---\n- a list\n---\n", "---\nlicense: 3\n---\n"])
def test_a_damaged_card_of_the_base_is_as_none(base: Path, broken: str) -> None:
    (base / "README.md").write_text(broken)
    run_cli("compress", base, "--rank", 4, "--output", "out")
    assert ModelCard.load("out/README.md").data.license_name == "unknown"


@pytest.mark.parametrize(
    ("edit", "licence", "text"),
    [
        ({"license": "mit"}, ("mit", None), "As the publisher states it: mit."),  # its unknown name left beside it
        ({"license": None}, ("other", "unknown"), "**Unknown.**"),
        ({"license_name": "mine"}, ("other", "mine"), "As the publisher states it: mine."),
        ({"license_link": "https://a.b/c"}, ("other", "unknown"), "**Unknown.**"),
        (
            {"license": ["mit", "apache-2.0"]},
            (["mit", "apache-2.0"], None),
            "As the publisher states it: mit, apache-2.0.",
        ),
    ],
)
def test_what_is_stated_of_the_licence_holds(
    base: Path, edit: dict[str, Any], licence: tuple[Any, str | None], text: str
) -> None:
    (base / "README.md").unlink()
    run_cli("compress", base, "--rank", 4, "--output", "out")
    card = ModelCard.load("out/README.md")
    for name, value in edit.items():
        card.data[name] = value
    card.save("out/README.md")
    for _ in range(2):
        write_card("out")
        card = ModelCard.load("out/README.md")
        assert (card.data.license, card.data.license_name) == licence
        assert f"## Licence\n\n{text}" in card.text


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ("license: Apache-2.0\nlanguage: english", {"license": "apache-2.0", "language": None}),
        ("license: mit\nlanguage: no", {"license": "mit", "language": ["no"]}),
        ("license: mit\nlibrary_name: keras\n1: a", {"license": "other", "library_name": "transformers"}),
        ("license: mit\nlibrary_name: keras", {"license": "mit", "library_name": "transformers"}),
        ("license: mit\nself: a", {"license": "other"}),
    ],
)
def test_odd_metadata_of_the_base_do_no_harm(base: Path, metadata: str, expected: dict[str, Any]) -> None:
    (base / "README.md").write_text(f"---\n{metadata}\n---\n")
    write_card(save(compress(base, rank=4, token_counts="uniform"), Path("out")))
    card = ModelCard.load("out/README.md")
    assert {name: getattr(card.data, name) for name in expected} == expected


def test_norwegian_that_a_person_states_stays_norwegian(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlanguage: no\n---\n# Min\n")
    write_card(folder)
    assert ModelCard.load(folder / "README.md").data.language == ["no"]


def test_a_local_path_is_never_the_base_model(base: Path, tmp_path: Path) -> None:
    for number, path in enumerate((base, tmp_path / base, f"./{base}")):
        run_cli("compress", path, "--rank", 4, "--output", f"out{number}")
        text = Path(f"out{number}/README.md").read_text()
        assert ModelCard(text).data.base_model is None
        assert str(tmp_path) not in text
        assert "org/base" not in text + Path(f"out{number}/config.json").read_text()


def test_a_folder_that_is_gone_is_no_base_model_either(base: Path) -> None:
    model = compress(base, rank=4)
    again = type(TINY_MODELS["bert"].build()).from_pretrained(base)
    base.rename("elsewhere")
    assert "base_model" not in compress(again, rank=4, token_counts="uniform").config.projclust["provenance"]
    assert "base_model" not in model.config.projclust["provenance"]


@pytest.mark.parametrize("base_model", ["/home/me/model", "./model", "a/b/c", "a b", ""])
def test_a_base_model_that_is_no_id_is_refused(base: Path, base_model: str) -> None:
    with pytest.raises(ValueError, match="expected the id of a model on the Hub"):
        compress(base, rank=4, base_model=base_model)


def test_scores_in_the_metadata_are_kept_and_shown(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    score = EvalResult(
        "sts", "mteb/stsbenchmark-sts", "STS-B", "spearman", 86.5, metric_name="Spearman, no fine-tuning"
    )
    card.data.eval_results = [*card.data.eval_results, score]
    card.save(folder / "README.md")
    for _ in range(2):
        write_card(folder)
    card = ModelCard.load(folder / "README.md")
    assert len(card.data.eval_results) == 2
    assert "| sts | STS-B | Spearman, no fine-tuning | 86.5 |" in card.text
    assert "No task was scored" not in card.text
