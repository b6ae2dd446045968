"""The model card: every line of it, the command in it, what is kept of a card that is there, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BASE_CARD, TINY_MODELS, run_cli, run_python, save, with_validation
from huggingface_hub import ModelCard, ModelCardData
from loopback_hub import LoopbackHub
from matplotlib.image import imread

from hf_projclust import compress
from hf_projclust.cards import add_comparison, render_card, write_card
from hf_projclust.sizes import measure

NUMBER = r"\d[\d,]*(?:\.\d+)?"
SIZE = rf"{NUMBER} MB"
WHOLE_CARD = rf"""---
base_model: org/base
language:
- en
- 'no'
library_name: sentence-transformers
license: cc-by-4\.0
pipeline_tag: sentence-similarity
tags:
- projclust
- projective-clustering
- model-compression
base_model_relation: quantized
model-index:
- name: pc40
  results:
  - task:
      type: feature-extraction
    dataset:
      name: 50 English sentences that come with hf_projclust
      type: bundled-sentences
    metrics:
    - type: cosine_similarity
      value: 0\.\d+
      name: Mean cosine to the dense model when compressed
---

# pc40

<!-- hf_projclust: written from the checkpoint; what is changed between this line and the closing one is lost at the \
next push -->

Made from \[org/base\]\(https://huggingface\.co/org/base\)\. The vocabulary table is compressed by
projective clustering \(\[arXiv 2010\.04290\]\(https://arxiv\.org/abs/2010\.04290\)\): rows are clustered by the \
subspace that they
lie in, and each row keeps only its coordinates\. \d+\.\d% of the parameters are saved\. The model file has {SIZE} in \
place of {SIZE}\.

## Use

```python
import hf_projclust  # pip install hf-projclust
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM\.from_pretrained\("pc40"\)
tokenizer = AutoTokenizer\.from_pretrained\("pc40"\)
```

Without hf_projclust the model cannot be loaded\. `hf-projclust decompress pc40 --output dense` writes a dense
copy for software that knows native classes only\.

## Sizes

\| \| dense \| compressed \| times smaller \|
\|---\|---:\|---:\|---:\|
\| Factored tables, parameters \| 1,552 \| {NUMBER} \| {NUMBER} \|
\| Model, parameters \| {NUMBER} \| {NUMBER} \| {NUMBER} \|
\| Factored tables in the file, bytes \| {NUMBER} \| {NUMBER} \| {NUMBER} \|
\| Model file \| {SIZE} \| {SIZE} \| {NUMBER} \|
\| Model in float32 \| {SIZE} \| {SIZE} \| {NUMBER} \|
\| Model in float16 or bfloat16 \| {SIZE} \| {SIZE} \| {NUMBER} \|

The file is in float32\. The dense sizes and those by precision are computed; MB are 1,000,000 bytes\.

## What is lost

- Relative squared error of the vocabulary table: 0\.\d{{4}}\.
- Mean cosine of sentence embeddings \(mean of the last hidden states, before any head\) to those of the dense model: \
0\.\d{{4}}, on 50 English sentences that come with hf_projclust\.

These were measured when the model was compressed, before any fine-tuning\. No task was scored, with or without \
fine-tuning: score yours before you rely on the model\.

!\[Tokens, rank and error of each cluster\]\(clusters\.png\)

<details><summary>Clusters of the vocabulary table</summary>

\| cluster \| tokens \| rank \| bits of a coordinate \| error \|
\|---:\|---:\|---:\|---:\|---:\|
\| 1 \| {NUMBER} \| {NUMBER} \| 32 \| 0\.\d{{4}} \|
\| 2 \| {NUMBER} \| {NUMBER} \| 32 \| 0\.\d{{4}} \|
\| 3 \| {NUMBER} \| {NUMBER} \| 32 \| 0\.\d{{4}} \|

</details>

## How it was compressed

- Preset `adaptive`: subspaces of ranks chosen under one budget, least squares, rows weighted by the use of their \
tokens and against their norms\.
- Vocabulary table: 97 tokens x 16, 3 clusters, ranks \d+ to \d+\.
- Use of tokens: a guess from the vocabulary \(`tokenizer`\)\. Seed: 0\.
- Base model: `org/base`\.
- Made on 20\d\d-\d\d-\d\d \(UTC\) with hf_projclust [\d.]+, python 3\.[\d.]+, torch [\d.]+\S*, transformers [\d.]+\S*\.

```bash
hf-projclust compress org/base --num-clusters 3 --compression 0\.4 --seed 0 --output pc40
```

## Fine-tune

The factors train like any other parameter: load with the Auto class of your task, and use the stock `Trainer`, PEFT or
a loop of your own\. The result is saved compressed\.

## Limits

- Load by Auto classes after `import hf_projclust`; native classes refuse the weights\.
- Rows of rarely used tokens are approximate: texts of other languages or fields than those that tokens were counted \
on lose more\.
- Limits and biases of the base model remain\.

## Licence

That of the base model: cc-by-4\.0\.

## Citation

```bibtex
@article\{{maalouf2020deep,
  title=\{{Deep Learning Meets Projective Clustering\}},
  author=\{{Maalouf, Alaa and Lang, Harry and Rus, Daniela and Feldman, Dan\}},
  journal=\{{arXiv preprint arXiv:2010\.04290\}},
  year=\{{2020\}}
\}}
@article\{{tukan2020compressed,
  title=\{{Compressed Deep Networks: Goodbye SVD, Hello Robust Low-Rank Approximation\}},
  author=\{{Tukan, Murad and Maalouf, Alaa and Weksler, Matan and Feldman, Dan\}},
  journal=\{{arXiv preprint arXiv:2009\.05647\}},
  year=\{{2020\}}
\}}
```

<!-- /hf_projclust -->
?""".replace("\\\n", "")


def test_every_line_of_a_card(folder: Path) -> None:
    assert re.fullmatch(WHOLE_CARD, (folder / "README.md").read_text())


def test_figures_are_those_of_the_files_and_of_the_record(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())["projclust"]
    dense, compressed = measure(folder)
    for before, after in (
        (dense.table_parameters, compressed.table_parameters),
        (dense.model_parameters, compressed.model_parameters),
        (dense.table_disk_bytes, compressed.table_disk_bytes),
    ):
        assert f"| {before:,} | {after:,} | {before / after:.2f} |" in text
    half = 2 * compressed.model_parameters + 4 * 97
    assert f"| {2 * dense.model_parameters / half:.2f} |\n\nThe file" in text
    error = config["solver"]["embedding"]["relative_squared_error"]
    assert f"Relative squared error of the vocabulary table: {error:.4f}." in text
    assert f"{config['fidelity']['mean_cosine']:.4f}, on 50 English sentences" in text
    for number, (size, rank, kept) in enumerate(
        zip(
            config["embedding"]["cluster_sizes"],
            config["embedding"]["cluster_ranks"],
            config["solver"]["embedding"]["energy_kept"],
            strict=True,
        ),
        1,
    ):
        assert f"| {number} | {size} | {rank} | 32 | {1 - kept:.4f} |" in text


def test_the_plot_has_a_bar_a_cluster(folder: Path) -> None:
    image = imread(folder / "clusters.png")
    assert image.shape[0] > 300
    assert image.shape[1] > 800
    columns = (image[:, :, :3] < 0.9).any(axis=(0, 2))
    assert columns.mean() > 0.5  # ink from left to right


def test_the_command_of_a_card_makes_the_model_again(folder: Path, base: Path) -> None:
    text = (folder / "README.md").read_text()
    command = re.search(r"```bash\nhf-projclust (.*)\n```", text)[1].split()
    command[command.index("org/base")], command[-1] = str(base), "again"
    run_cli(*command)
    assert Path("again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"preset": "messi", "rank": 4}, "--preset messi --rank 4 --seed 0"),
        (
            {"preset": "robust", "compression": 0.5, "p": 1.5, "seed": 3},
            "--preset robust --compression 0.5 --p 1.5 --seed 3",
        ),
        (
            {"preset": "svd", "compression": 0.5, "max_rounds": 7},
            "--preset svd --compression 0.5 --seed 0 --max-rounds 7",
        ),
        (
            {"compression": 0.5, "token_counts": ["tokenizer", "0.3*corpus text.txt"]},
            "--compression 0.5 --token-counts tokenizer --token-counts '0.3*corpus text.txt' --seed 0",
        ),
        (
            {"compression": 0.5, "adaptive_ranks": False, "num_clusters": 2, "norm_exponent": 0},
            "--num-clusters 2 --compression 0.5 --no-adaptive-ranks --norm-exponent 0.0 --seed 0",
        ),
        (
            {"preset": "messi", "compression": 0.5, "count_exponent": 1},
            "--compression 0.5 --count-exponent 1.0 --seed 0",
        ),
    ],
)
def test_the_command_has_what_differs_from_the_defaults(
    base: Path, tokenizer: Any, options: dict[str, Any], expected: str
) -> None:
    Path("corpus text.txt").write_text("good film\n")
    if "token_counts" in options:
        options = options | {"tokenizer": tokenizer}
    write_card(save(compress(base, **options), Path("out")))
    text = Path("out/README.md").read_text()
    assert f"hf-projclust compress MODEL {expected} --output out" in re.sub(r" --preset messi(?= --comp)", "", text)
    assert "MODEL in the command stands for its folder" in text


def test_counts_of_ones_own_have_no_command(base: Path) -> None:
    write_card(save(compress(base, compression=0.4, token_counts=torch.arange(97) + 1.0), Path("out")))
    text = Path("out/README.md").read_text()
    assert "hf-projclust compress" not in text
    assert "no command line can give" in text


def test_a_factored_head_is_described_beside_the_table(tmp_path: Path) -> None:
    write_card(save(TINY_MODELS["llama"].compressed(head=True), tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    assert "The vocabulary table and the head are compressed by" in text
    assert "- Relative squared error of the head: 0." in text
    assert "<summary>Clusters of the head</summary>" in text
    assert "- Head: 97 tokens x 16, 3 clusters, " in text
    assert "hf-projclust compress MODEL --head --num-clusters 3" in text


def test_a_head_alone_and_code_that_goes_along_are_in_the_command_and_no_fidelity_is_measured(tmp_path: Path) -> None:
    save(TINY_MODELS["llama"].build(), tmp_path / "llama")
    options = ["--no-embedding", "--head", "--rank", 4, "--token-counts", "uniform", "--standalone"]
    run_cli("compress", tmp_path / "llama", *options, "--output", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    expected = "--no-embedding --head --rank 4 --num-clusters 5 --no-adaptive-ranks --token-counts uniform --seed 0"
    command = re.search(r"^hf-projclust compress MODEL (.*) --output out$", text, re.MULTILINE)[1].split(" ")
    assert sorted(command) == sorted([*expected.split(" "), "--standalone"])
    assert "was not measured." in text
    assert 'AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)' in text
    assert "Without hf_projclust the model cannot be loaded" not in text


def test_a_comparison_of_two_tables_without_fidelity(tmp_path: Path) -> None:
    folders = [save(TINY_MODELS["llama"].compressed(head=True, seed=seed), tmp_path / f"s{seed}") for seed in (0, 1)]
    for folder in folders:
        write_card(folder)
    add_comparison(folders)
    lines = (folders[0] / "README.md").read_text().splitlines()[-2:]
    assert lines[0].startswith("| s0 |")
    for line in lines:
        assert re.search(r"\| 0\.\d{4} and 0\.\d{4} \| not measured \|$", line)


def test_a_processor_a_quantised_rest_and_modules_change_the_code(folder: Path) -> None:
    (folder / "processor_config.json").write_text("{}")
    (folder / "modules.json").write_text("[]")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    write_card(folder)
    text = (folder / "README.md").read_text()
    assert 'processor = AutoProcessor.from_pretrained("pc40")' in text
    assert 'SentenceTransformer("pc40")' in text
    assert "hf-projclust decompress" not in text  # which wants float weights
    assert "The file is in few bits, its factors in float32." in text
    assert "Model in float32" not in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {},
            "`adaptive`: subspaces of ranks chosen under one budget, least squares, rows weighted by the use of their ",
        ),
        ({"token_counts": "uniform"}, "least squares, rows weighted against their norms."),
        ({"adaptive_ranks": False}, "`adaptive`: subspaces of one rank, least squares"),
        (
            {"preset": "messi", "adaptive_ranks": True},
            "`messi` (MESSI, arXiv 2010.04290): subspaces of ranks chosen under one budget, least squares, rows",
        ),
        ({"preset": "robust", "num_clusters": 1}, "`robust` (arXiv 2009.05647): one subspace, least l_1 error, rows"),
        ({"preset": "robust", "p": 1.5}, "subspaces of one rank, least l_1.5 error, rows weighted alike."),
        ({"preset": "robust", "p": 1.5}, "Relative l_1.5 error, which was minimised: 0."),
    ],
)
def test_the_method_is_told_as_the_record_has_it(base: Path, options: dict[str, Any], text: str) -> None:
    write_card(save(compress(base, **({"compression": 0.5, "num_clusters": 3} | options)), Path("out")))
    assert text in Path("out/README.md").read_text()


def test_a_name_with_quotes_and_bars_breaks_nothing(base: Path, tmp_path: Path) -> None:
    run_cli("compress", base, "--compression", 0.4, 0.6, "--num-clusters", 3, "--output", tmp_path / 'my "a|b" é')
    text = (tmp_path / 'my "a|b" é-40/README.md').read_text()
    assert 'from_pretrained("my \\"a|b\\" é-40")' in text
    assert """`hf-projclust decompress 'my "a|b" é-40' --output dense`""" in text
    assert '| my "a\\|b" é-40 | ' in text
    write_card(tmp_path / 'my "a|b" é-40')
    assert (tmp_path / 'my "a|b" é-40/README.md').read_text() == text


def test_what_a_person_wrote_is_kept_word_for_word(folder: Path) -> None:
    readme = folder / "README.md"
    ours = readme.read_text()
    readme.write_text(ours.replace("# pc40\n", "# Our model\n\nBefore \\1 it.\n") + "\nAfter it.\n")
    written = readme.read_text()
    write_card(folder)
    assert readme.read_text() == written
    readme.write_text("---\nlicense: mit\nfavourite: green\n---\n")
    write_card(folder)
    card = ModelCard.load(readme)
    assert (card.data.license, card.data.favourite) == ("mit", "green")
    assert card.text.startswith("\n# pc40\n")
    readme.write_text("# Mine alone\n")
    write_card(folder)
    assert ModelCard.load(readme).text.startswith("# Mine alone\n\n<!-- hf_projclust:")


def test_a_part_whose_end_was_deleted_takes_nothing_along(folder: Path) -> None:
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("<!-- /hf_projclust -->", "Mine."))
    for _ in range(2):
        write_card(folder)
    assert "Mine." in readme.read_text()
    assert readme.read_text().count("<!-- /hf_projclust -->") == 1


def test_the_card_that_transformers_writes_is_replaced_unless_it_was_filled_in(folder: Path) -> None:
    description = (
        "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has "
    )
    empty = ModelCard.from_template(ModelCardData(), model_description=description + "been automatically generated.")
    card = render_card(folder, existing=str(empty).encode())
    assert "More Information Needed" not in card.text
    filled = str(empty).replace("[More Information Needed]", "Something", 1)
    assert "Something" in render_card(folder, existing=filled.encode()).text


def test_metadata_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match=r"the card README.md cannot be read .* Mend it"):
        write_card(folder)
    assert (folder / "README.md").read_text() == "---\nlicense: [\n---\n"


def test_a_card_of_what_is_not_compressed_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="holds a dense model"):
        write_card(base)
    assert (base / "README.md").read_text() == BASE_CARD


@with_validation
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart", "gemma3", "roberta", "distilbert"])
def test_the_hub_takes_the_card_of_every_tiny_model(name: str, hub: LoopbackHub, tmp_path: Path) -> None:
    tiny = TINY_MODELS[name]
    write_card(save(tiny.compressed(), tmp_path / "out"))
    card = ModelCard.load(tmp_path / "out/README.md")
    card.validate()
    auto_class = re.search(r"import (AutoModel\w*),", card.text)[1]
    import transformers

    assert auto_class in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel") or (
        name == "distilbert" and auto_class == "AutoModelForSequenceClassification"
    )
    assert auto_class != "AutoModelForMaskedLM" or name == "bert"
    model = getattr(transformers, auto_class).from_pretrained(tmp_path / "out")
    assert type(model).__name__ == f"ProjClust{tiny.model_class.__name__}"


def test_the_trainer_keeps_cards_whichever_is_imported_first() -> None:
    for imports in ("import transformers.trainer, hf_projclust", "import hf_projclust, transformers.trainer"):
        assert run_python(
            f"{imports}\nprint(hasattr(transformers.trainer.Trainer.create_model_card, '__wrapped__'))"
        ) == ("True\n")
