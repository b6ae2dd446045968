"""Tiny real models from configurations, a tiny real tokenizer, and what several test files need, a Hub among it."""

from loopback_hub.session import HUB  # before anything imports huggingface_hub, which then reads where the Hub is
from workers import pytest_xdist_auto_num_workers  # noqa: F401 (a hook; and before anything imports torch)

# isort: split
import copy
import inspect
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import logged_deprecations
import pytest
import torch
from huggingface_hub import ModelCard, constants
from hypothesis import HealthCheck, settings
from loopback_hub import LoopbackHub
from tiny_tokenizers import BUILDERS, build_word_level, build_wordpiece
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging
from typer.testing import CliRunner

from hf_projclust import cli, compress
from hf_projclust.demo import DemoRow, run_demo

# For the processes that tests start, and for theirs. By PYTHONWARNINGS=default and `pytest -W default` old versions are
# tested, whose warnings are of no use any more.
os.environ["PYTHONWARNINGS"] = os.environ.get("PYTHONWARNINGS") or "error"
WARNINGS_ARE_ERRORS = os.environ["PYTHONWARNINGS"] == "error"
torch.set_warn_always(True)  # what torch says once a process may be said in a test that allows it

VOCAB_SIZE = 97  # prime, so that no cluster size divides it
WIDTH = 16
COMPRESSED: dict[str, Any] = {"num_clusters": 3, "compression": 0.4, "token_counts": "uniform"}


@dataclass(frozen=True)
class Tiny:
    """One line of the shared table of tiny models."""

    model_class: type[PreTrainedModel]
    config: Any
    tables: tuple[str, ...]  # every module that the vocabulary table stands in, the stored one first

    def build(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        model = self.model_class(copy.deepcopy(self.config)).eval()
        torch.nn.init.normal_(model.get_input_embeddings().weight)
        return model

    def compressed(self, **options: Any) -> Any:
        """The model with its table factored in three clusters, unless the options say otherwise."""
        return compress(self.build(), **(COMPRESSED | options))

    def inputs(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Token ids that hold the first, the last, and every other token."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(VOCAB_SIZE - 1, generator=generator)
        ids = torch.cat([torch.tensor([VOCAB_SIZE - 1]), order[: 8 * 12 - 1]]).view(8, 12)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids.flip(0)
        return inputs


BASE_CARD = """---
license: cc-by-4.0
language: [en, no]
library_name: sentence-transformers
pipeline_tag: sentence-similarity
datasets: [s2orc]
---

# Base
"""

settings.register_profile("any machine", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

SMALL_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}
SMALL_PAIR_SIZES = {  # of an encoder and a decoder, as BART's kin name them
    "vocab_size": VOCAB_SIZE,
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
}

TINY_MODELS = {
    # a tied head with a bias; a padding row
    "bert": Tiny(
        BertForMaskedLM,
        BertConfig(**SMALL_SIZES, pad_token_id=0),
        ("bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    ),
    # no head, a task head, labels
    "distilbert": Tiny(
        DistilBertForSequenceClassification,
        DistilBertConfig(
            vocab_size=VOCAB_SIZE, dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=40
        ),
        ("distilbert.embeddings.word_embeddings",),
    ),
    # positions that depend on the padding id
    "roberta": Tiny(RobertaModel, RobertaConfig(**SMALL_SIZES, pad_token_id=1), ("embeddings.word_embeddings",)),
    # a tied head without bias, generation
    "gpt2": Tiny(
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=VOCAB_SIZE, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=40, bos_token_id=1, eos_token_id=2
        ),
        ("transformer.wte", "lm_head"),
    ),
    # an untied head, which stays dense
    "llama": Tiny(
        LlamaForCausalLM,
        LlamaConfig(**SMALL_SIZES, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0),
        ("model.embed_tokens",),
    ),
    # one table shared by encoder, decoder and head
    "t5": Tiny(
        T5ForConditionalGeneration,
        T5Config(
            vocab_size=VOCAB_SIZE, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
        ),
        ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"),
    ),
    # a table that inner and outer model tie in turn, with an embedding class of its own that scales
    "bart": Tiny(
        BartForConditionalGeneration,
        BartConfig(**SMALL_PAIR_SIZES, scale_embedding=True),
        ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"),
    ),
    # an embedding class whose scale is a buffer that is in no file
    "gemma3": Tiny(
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SMALL_SIZES, num_key_value_heads=1, head_dim=8),
        ("model.embed_tokens", "lm_head"),
    ),
}


def build_llava() -> LlavaForConditionalGeneration:
    """A vision-language model: its vocabulary stands in a text model within it, its untied head outside."""
    vision = {"model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    text = TINY_MODELS["llama"].config.to_dict()
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=0)
    ).eval()


@pytest.fixture(autouse=True)
def no_logged_deprecation() -> Iterator[None]:
    """Fail a test in which a library logs a deprecation, for which the filters of warnings have no eye."""
    logged_deprecations.forget_what_was_said_once()
    yield
    messages = logged_deprecations.taken()
    assert not (messages and WARNINGS_ARE_ERRORS), "\n".join(messages)


@pytest.fixture(params=TINY_MODELS.values(), ids=TINY_MODELS.keys())
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Each of the tiny models in turn."""
    return request.param


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with ids of the tiny models; each test has its own, which truncating changes."""
    return build_word_level(VOCAB_SIZE)


@pytest.fixture(scope="module", params=BUILDERS.values(), ids=BUILDERS.keys())
def any_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer of each kind in turn."""
    return request.param()


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerFast:
    return build_wordpiece()


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, DemoRow]]:
    """The demonstration's folder and the lines of its table, made once: it takes most of a minute."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, {row.name: row for row in run_demo(folder)}


with_validation = pytest.mark.skipif(
    "huggingface.co" in inspect.getsource(ModelCard.validate),
    reason="this huggingface_hub has cards checked by the real Hub, wherever it is told to",
)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """The Hub of this session, empty, with an empty cache beside it and alice of org as its user."""
    HUB.start()
    HUB.clear()
    HUB.users["hf_alice"] = "alice"
    HUB.organisations["org"] = {"alice"}
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    yield HUB
    HUB.start()
    HUB.clear()


@pytest.fixture
def signed_in(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub, to which this process sends alice's token without being told to."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return hub


@pytest.fixture
def base(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dense model in a folder with a card, whose name looks like a Hub id; the current folder is above it."""
    monkeypatch.chdir(tmp_path)
    folder = save(TINY_MODELS["bert"].build(), Path("org/base"))
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(BASE_CARD)
    return folder


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """The model, compressed by the command line."""
    run_cli("compress", base, "--compression", 0.4, "--num-clusters", 3, "--base-model", "org/base", "--output", "pc40")
    return tmp_path / "pc40"


@pytest.fixture
def upstream_log(caplog: pytest.LogCaptureFixture) -> Any:
    """Warnings that Transformers logs, which it keeps from other handlers unless told otherwise."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the demonstration, so that of several processes one makes it, and early."""
    items.sort(key=lambda item: "demonstration" not in getattr(item, "fixturenames", ()))


def factor_names(tiny: Tiny) -> list[str]:
    return [f"{tiny.tables[0]}.{part}" for part in ("coefficients", "bases", "rows")]


def equal_state_dicts(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def write_lines(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def run_cli(*arguments: object, code: int = 0) -> str:
    """Run hf-projclust in this process, where a warning is an error, and give what it prints."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if not isinstance(result.exception, SystemExit | None):  # no message of the command's own
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def run_python(code: str, *args: str) -> str:
    """Run code in a fresh process, with warnings as errors, and give what it prints."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Count what the sweeps over architectures came to: how many classes, of how many model types, and why not."""
    types = defaultdict(list)
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            test, _, case = report.nodeid.rpartition("::")[2].partition("[")
            if test.startswith("test_every_class"):
                reason = report.longrepr[2].split(": ")[1] if outcome == "skipped" else ""
                types[test, outcome, reason].append(case.rpartition("-")[0])
    for (test, outcome, reason), found in types.items():
        why = f" ({reason})" if reason else ""
        terminalreporter.write_line(f"{test}: {outcome}{why}: {len(found)} classes of {len(set(found))} model types")
