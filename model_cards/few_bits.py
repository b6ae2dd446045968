"""Sentence similarity of all-MiniLM-L6-v2 with its table in few bits, beside plain rounding at equal or more bytes.

    python model_cards/few_bits.py GLUE_FOLDER > model_cards/few_bits.md

GLUE_FOLDER has STS-B: its dev part is scored; of its training part only the sentences are taken, as a text to count
tokens in. Nothing is trained. Each of ours is made with four seeds: mean, and the least and the greatest. Bytes of a
table are by the difference of the model's files; plain rounding (round-to-nearest, asymmetric, groups along a row) is
put into the dense model, and its bytes are counted: the bits of each number, and 16 bits each for the scale and the
least number of a group.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

from hf_projclust import compress
from hf_projclust.demo import packaged_minilm
from hf_projclust.evaluation.machine import describe_machine, installed_versions
from hf_projclust.evaluation.rivals.rounding import round_to_nearest

RATIOS = (10, 16, 22, 30.1)  # names of tensors in the header of a file take 0.02 % of it at the last
SEEDS = range(4)
ROUNDINGS = ((4, 64), (3, 64), (3, 128), (2, 32), (2, 64), (2, 128))  # bits and numbers of a group
TRAINING_TEXT = "STS-B-train.txt"
COUNTS = (["words:en"], ["words:en", TRAINING_TEXT])
# Weights of rows, chosen among eleven by errors of similarities on 1,500 pairs of STS-B's training part, and by cosines
# of sentence embeddings on MRPC (train) and WikiText-2 (validation): never on the part that is reported.
WEIGHTS = {"count_exponent": 0.7, "norm_exponent": 0.0}


def read_pairs(folder: Path, part: str) -> list[list[str]]:
    """The lines of a part of STS-B: sentences in columns 7 and 8, a score of their similarity in column 9."""
    with open(folder / "STS-B" / f"{part}.tsv", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


@torch.no_grad()
def embed(model: AutoModel, tokenizer: AutoTokenizer, sentences: list[str]) -> Tensor:
    """Mean of the last hidden states over the tokens of each sentence, shape (len(sentences), dim)."""
    embeddings = torch.empty(len(sentences), model.config.hidden_size)
    order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
    for first in range(0, len(order), 64):
        batch = order[first : first + 64]
        inputs = tokenizer([sentences[number] for number in batch], padding=True, truncation=True, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1)
        hidden = model(**inputs).last_hidden_state
        embeddings[batch] = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    return embeddings


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glue", type=Path)
    folder = parser.parse_args().glue
    pairs = read_pairs(folder, "dev")
    left, right = [pair[7] for pair in pairs], [pair[8] for pair in pairs]
    scores = [float(pair[9]) for pair in pairs]
    source = packaged_minilm()
    dense, tokenizer = AutoModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    table = dense.get_input_embeddings().weight.detach()
    reference = embed(dense, tokenizer, left), embed(dense, tokenizer, right)

    def measure(model: AutoModel) -> tuple[float, float]:
        """Spearman's correlation in percent, and the mean cosine to the dense model."""
        found = embed(model, tokenizer, left), embed(model, tokenizer, right)
        spearman = spearmanr(cosine_similarity(*found), scores).statistic
        cosines = torch.cat([cosine_similarity(*both) for both in zip(found, reference, strict=True)])
        return 100 * float(spearman), float(cosines.mean())

    def line(name: str, table_bytes: float, measured: list[tuple[float, float]], counts: str = "") -> str:
        spearmans, cosines = zip(*measured, strict=True)
        spread = f" ({min(spearmans):.2f} to {max(spearmans):.2f})" if len(measured) > 1 else ""
        return (
            f"| {name} | {counts} | {table_bytes:,.0f} | {table.nbytes / table_bytes:.2f} "
            f"| {fmean(spearmans):.2f}{spread} | {fmean(cosines):.4f} |"
        )

    lines = [line("dense, float32", table.nbytes, [measure(dense)])]
    with tempfile.TemporaryDirectory() as name:
        dense.save_pretrained(Path(name, "dense"))
        dense_bytes = Path(name, "dense", "model.safetensors").stat().st_size
        text = Path(name, TRAINING_TEXT)
        text.write_text("".join(f"{pair[7]}\n{pair[8]}\n" for pair in read_pairs(folder, "train")), encoding="utf-8")
        for counts, ratio in product(COUNTS, RATIOS):
            sources = [str(text) if source == TRAINING_TEXT else source for source in counts]
            measured, sizes = [], []
            for seed in SEEDS:
                output = Path(name, "compressed")
                compress(source, ratio=ratio, token_counts=sources, seed=seed, **WEIGHTS).save_pretrained(output)
                sizes.append((output / "model.safetensors").stat().st_size)
                measured.append(measure(AutoModel.from_pretrained(output)))
            table_bytes = table.nbytes - dense_bytes + max(sizes)
            lines.append(line(f"`--ratio {ratio}`", table_bytes, measured, ", ".join(counts)))
    for bits, group in ROUNDINGS:
        model = AutoModel.from_pretrained(source)
        rounded = round_to_nearest(table, bits=bits, group=group)
        model.get_input_embeddings().weight.data = rounded.rows
        lines.append(line(f"plain rounding, {rounded.setting}", rounded.size_bytes, [measure(model)]))
    versions = ", ".join(f"{key} {value}" for key, value in installed_versions().items() if value)
    print("# all-MiniLM-L6-v2, its table in few bits\n")  # noqa: T201
    print("| table | token counts | bytes | times smaller | STS-B dev, Spearman | mean cosine to the dense model |")  # noqa: T201
    print("|---|---|---:|---:|---:|---:|", *lines, sep="\n")  # noqa: T201
    options = ", ".join(f"{name} {value:g}" for name, value in WEIGHTS.items())
    print(f"\nOptions: {options}, seeds 0 to 3, no training. {describe_machine()}; {versions}.")  # noqa: T201


if __name__ == "__main__":
    main()
