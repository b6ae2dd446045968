"""Recovery: factors that are trained to give the outputs of the dense model, and nothing else that changes."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, Tiny, equal_state_dicts, factor_names
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from hf_projclust import compress
from hf_projclust.recovery import hold_out, recover
from hf_projclust.recovery.distillation import (
    Batches,
    DistillationTrainer,
    distance,
    reading_order,
    relative_squared_error,
)

BERT = TINY_MODELS["bert"]
QUICK: dict[str, Any] = {"max_steps": 2, "batch_size": 4}


def random_texts(count: int, seed: int = 0, first: int = 5, last: int = 97) -> list[str]:
    """Texts of three to twelve words whose ids are from first to last."""
    rng = random.Random(seed)
    words = ["good", "bad", "film", *(f"w{i}" for i in range(89))][first - 5 : last - 5]
    return [" ".join(rng.sample(words, rng.randint(3, 12))) for _ in range(count)]


def distance_to(teacher: Any, model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The loss of a model in evaluation mode, of all texts in one batch."""
    start = 0 if model.config.is_encoder_decoder else None
    batch = Batches(0, start)([{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]])
    with torch.no_grad():
        own, wanted = (part(**batch, output_hidden_states=True) for part in (model, teacher))
    return float(distance(own, wanted, batch, has_head=teacher.get_output_embeddings() is not None))


def snapshot(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_recovered_model_is_closer_to_its_teacher_and_only_factors_changed(
    tiny: Tiny, tokenizer: PreTrainedTokenizerFast
) -> None:
    teacher, model = tiny.build(), tiny.compressed()
    model.train()
    next(iter(model.parameters())).requires_grad_(False)
    before, of_teacher, config = snapshot(model), snapshot(teacher), copy.deepcopy(model.config.projclust)
    recovered = recover(model, teacher, tokenizer, random_texts(200), num_epochs=3, learning_rate=2e-2, batch_size=16)

    held_out = random_texts(40, seed=1)
    distances = [distance_to(teacher, one.eval(), tokenizer, held_out) for one in (model, recovered)]
    assert distances[1] < 0.97 * distances[0]

    after, factors = snapshot(recovered), set(factor_names(tiny)[:2])
    tied = {f"{name}.{part}" for name in tiny.tables for part in ("coefficients", "bases")}
    assert factors <= tied
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in tied), name
    for untouched, state in ((model, before), (teacher, of_teacher)):
        assert all(torch.equal(tensor, state[name]) for name, tensor in untouched.state_dict().items())
    assert model.config.projclust == config
    gradients = [[parameter.requires_grad for parameter in one.parameters()] for one in (model, recovered)]
    assert gradients[0] == gradients[1]
    assert False in gradients[0]
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_the_mode_of_the_input_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    model = TINY_MODELS["roberta"].compressed().train()
    recovered = recover(model, TINY_MODELS["roberta"].build(), tokenizer, random_texts(8), **QUICK)
    assert recovered.training
    assert model.training


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_tied_head_stays_tied_and_the_saved_model_is_equal(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny = TINY_MODELS[name]
    recovered = recover(tiny.compressed(), tiny.build(), tokenizer, random_texts(30), **QUICK)
    for part in ("coefficients", "bases"):
        assert getattr(recovered.get_input_embeddings(), part) is getattr(recovered.get_output_embeddings(), part)
    recovered.save_pretrained(tmp_path)
    loaded = type(recovered).from_pretrained(tmp_path)
    assert equal_state_dicts(loaded, recovered)
    assert loaded.config.projclust == recovered.config.projclust
    assert loaded.config.projclust["recovery"] == [
        {"steps": 2, "learning_rate": 1e-2, "batch_size": 4, "max_length": 128, "seed": 0, "texts": 8}
    ]


def test_coordinates_of_tokens_that_no_text_has_stay_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    tiny = TINY_MODELS["roberta"]  # without a head, which would train all rows; its padding token is 1
    model = tiny.compressed()
    recovered = recover(model, tiny.build(), tokenizer, random_texts(60, last=50), num_epochs=2, batch_size=8)
    assert len({len(text.split()) for text in random_texts(60, last=50)[:8]}) > 1  # so that there is padding
    tables = [one.get_input_embeddings() for one in (model, recovered)]
    rows = [torch.cat([stored.flatten(1).abs().sum(1) for stored, _ in table.blocks()])[table.rows] for table in tables]
    changed = (rows[0] != rows[1]).nonzero().flatten().tolist()
    assert set(changed) <= {2, 3, *range(5, 50)}  # [CLS], [SEP] and the words
    assert len(changed) > 40


def test_the_distance_of_a_batch_by_hand() -> None:
    class Outputs:
        encoder_last_hidden_state = None

        def __init__(self, states: list, logits: list) -> None:
            self.last_hidden_state, self.logits = torch.tensor([states]), torch.tensor([logits])

    mask = {"attention_mask": torch.tensor([[1, 1, 0]])}
    wanted = Outputs([[3.0, 4.0], [0.0, 0.0], [9.0, 9.0]], [[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    own = Outputs([[3.0, 3.0], [2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, -1.0], [0.0, 5.0]])
    of_states = (1 + 4) / 25
    of_second = 0.5 * (0.5 / torch.tensor([1.0, -1.0]).softmax(0)).log().sum()
    assert float(distance(own, wanted, mask, has_head=False)) == pytest.approx(of_states)
    assert float(distance(own, wanted, mask, has_head=True)) == pytest.approx(of_states + float(of_second) / 2)
    assert float(relative_squared_error(torch.ones(1, 2), torch.zeros(1, 2))) > 1e30  # no division by zero


def test_dropout_is_off_and_steps_are_relative_to_the_size_of_each_factor(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, teacher, texts = BERT.compressed(), BERT.build(), random_texts(8)
    wanted = distance_to(teacher, model, tokenizer, texts)
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = DistillationTrainer(model=model.train(), teacher=teacher, learning_rate=0.01, args=arguments)
    batch = Batches(0, None)([{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]])
    assert float(trainer.compute_loss(model, batch).detach()) == pytest.approx(wanted, rel=1e-5)
    embedding = model.get_input_embeddings()
    steps = {id(group["params"][0]): group["lr"] for group in trainer.optimizer.param_groups}
    assert len(steps) == 2
    for factor in (embedding.coefficients, embedding.bases):
        assert steps[id(factor)] == pytest.approx(0.01 * float(factor.detach().square().mean().sqrt()))


def test_the_reading_order_has_each_text_in_turn_and_batches_of_like_lengths() -> None:
    lengths = [number % 7 for number in range(45)]
    order = reading_order(lengths, 100, 8, seed=0)
    assert len(order) == 100
    assert {order.count(number) for number in range(45)} == {2, 3}
    batches = [[lengths[number] for number in order[first : first + 8]] for first in range(0, 96, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) <= 2 * len(batches)
    assert order == reading_order(lengths, 100, 8, seed=0)
    assert order != reading_order(lengths, 100, 8, seed=1)
    assert sorted(reading_order(lengths, 20, 8, seed=0)) != list(range(20))
    assert sorted(reading_order(lengths, 45, 8, seed=0)) == list(range(45))


def test_batches_of_an_encoder_decoder_are_shifted() -> None:
    batch = Batches(0, 7)([{"input_ids": [5, 6]}, {"input_ids": [8]}])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6], [8, 0]],
        "attention_mask": [[1, 1], [1, 0]],
        "decoder_input_ids": [[7, 5], [7, 8]],
        "decoder_attention_mask": [[1, 1], [1, 0]],
    }


def test_half_precision_is_trained_in_full_and_given_back_in_half(tokenizer: PreTrainedTokenizerFast) -> None:
    tiny = TINY_MODELS["roberta"]
    model = tiny.compressed().to(torch.bfloat16)
    recovered = recover(model, tiny.build(), tokenizer, random_texts(32), num_epochs=2, batch_size=8)
    assert {tensor.dtype for tensor in recovered.state_dict().values() if tensor.is_floating_point()} == {
        torch.bfloat16
    }
    assert not torch.equal(model.get_input_embeddings().bases, recovered.get_input_embeddings().bases)


def test_equal_seeds_give_equal_models_and_other_seeds_others(tokenizer: PreTrainedTokenizerFast) -> None:
    tiny = TINY_MODELS["roberta"]
    once, again, other = (
        recover(tiny.compressed(), tiny.build(), tokenizer, random_texts(32), batch_size=8, seed=seed)
        for seed in (0, 0, 1)
    )
    assert equal_state_dicts(once, again)
    assert not equal_state_dicts(once, other)


def test_an_interrupted_run_goes_on_and_ends_bit_equal(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, options = TINY_MODELS["bert"], {"max_steps": 10, "batch_size": 4}
    arguments = (tiny.compressed(), tiny.build(), tokenizer, random_texts(40))
    whole = recover(*arguments, **options)

    calls = iter(range(8))

    def interrupted(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return distance(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr("hf_projclust.recovery.distillation.distance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recover(*arguments, **options, checkpoint=tmp_path / "run")
    (tmp_path / "run/checkpoint-9").mkdir()  # one that was being written
    steps = []
    with monkeypatch.context() as patched:
        patched.setattr(
            "hf_projclust.recovery.distillation.distance",
            lambda *args, **kwargs: steps.append(1) or distance(*args, **kwargs),
        )
        resumed = recover(*arguments, **options, checkpoint=tmp_path / "run")
    assert len(steps) == 10 - 8
    assert equal_state_dicts(whole, resumed)
    assert resumed.config.projclust["recovery"][0]["steps"] == 10

    with pytest.raises(ValueError, match="belongs to another run: batch_size, texts differ"):
        recover(*arguments[:3], random_texts(41), max_steps=10, batch_size=5, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="holds other things"):
        recover(*arguments, **options, checkpoint=tmp_path)


def test_training_arguments_reach_the_trainer(tokenizer: PreTrainedTokenizerFast) -> None:
    tiny = TINY_MODELS["roberta"]
    more = {"bf16": True, "gradient_accumulation_steps": 2}
    recovered = recover(
        tiny.compressed(), tiny.build(), tokenizer, random_texts(32), batch_size=8, training_arguments=more
    )
    assert recovered.config.projclust["recovery"][0]["steps"] == 2


def other_sizes(**sizes: int) -> Any:
    config = copy.deepcopy(TINY_MODELS["bert"].config)
    config.update(sizes)
    return BertForMaskedLM(config)


TEXTS = ["good film"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": BERT.build}, ValueError, "BertForMaskedLM is not compressed"),
        ({"model": lambda: torch.nn.Linear(1, 1)}, TypeError, "got a Linear"),
        (
            {"model": lambda: BERT.compressed(compression=None, rank=4, coefficient_bits=4)},
            ValueError,
            r"tables in few bits.*model\.dequantize_factors\(\) first",
        ),
        ({"teacher": BERT.compressed}, ValueError, "is compressed itself; expected the dense model"),
        ({"teacher": lambda: BERT.build().bert}, ValueError, "the teacher is a BertModel .* from a BertForMaskedLM"),
        (
            {"teacher": lambda: other_sizes(vocab_size=99)},
            ValueError,
            "a table of 99 x 16 and the model one of 97 x 16",
        ),
        ({"teacher": lambda: other_sizes(hidden_size=8)}, ValueError, "a table of 97 x 8 and the model one of 97 x 16"),
        ({"teacher": lambda: other_sizes(num_hidden_layers=2)}, ValueError, r"such as bert\.encoder\.layer\.1"),
        ({"teacher": lambda: "no/where/at all"}, FileNotFoundError, "is not a folder"),
        ({"texts": []}, ValueError, "there are 0 texts, and none has words"),
        ({"texts": ["", " "]}, ValueError, "there are 2 texts, and none has words"),
        ({"texts": "good film"}, TypeError, "texts is a str; expected a list"),
        ({"texts": ["good", 5]}, TypeError, "texts holds a int"),
        ({"texts": [None]}, TypeError, "texts holds a NoneType"),
        ({"max_steps": 0}, ValueError, "max_steps=0; expected a whole number, 1 or more"),
        ({"batch_size": 1.5}, ValueError, "batch_size=1.5"),
        ({"max_length": 0}, ValueError, "max_length=0"),
        ({"num_epochs": 0}, ValueError, "num_epochs=0; expected a finite number above 0"),
        ({"num_epochs": float("inf")}, ValueError, "num_epochs=inf; expected a finite number above 0"),
        ({"seed": -1}, ValueError, "seed=-1; expected a whole number, 0 to 4,294,967,295"),
        ({"seed": 2**32}, ValueError, "seed=4294967296; expected a whole number"),
        ({"learning_rate": 1.0}, ValueError, "learning_rate=1.0; expected a share"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate=nan"),
        ({"device": "nowhere"}, ValueError, "device='nowhere' cannot be used here"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_recovered_is_refused_before_any_work(
    given: dict[str, Any], error: type[Exception], message: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model, teacher = (
        given.pop(name, default)() for name, default in (("model", BERT.compressed), ("teacher", BERT.build))
    )
    with pytest.raises(error, match=message):
        recover(model, teacher, tokenizer, given.pop("texts", TEXTS), checkpoint=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["teacher", "compressed model"])
def test_a_loss_that_is_not_finite_ends_the_run(which: str, tokenizer: PreTrainedTokenizerFast) -> None:
    teacher, model = BERT.build(), BERT.compressed()
    with torch.no_grad():
        (teacher if which == "teacher" else model).cls.predictions.bias[0] = float("nan")
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"the distance is nan at step 1; expected a finite one: the {which}"):
        recover(model, teacher, tokenizer, random_texts(8), **QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if "bias" not in name)


def test_factors_that_the_last_step_made_infinite_are_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_infinite_gradient(outputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        return outputs.logits.sum().mul(0).clamp(min=0).sqrt()  # whose value is 0

    monkeypatch.setattr("hf_projclust.recovery.distillation.distance", with_infinite_gradient)
    with pytest.raises(ValueError, match="training made coefficients of .* NaN or infinite; expected finite factors"):
        recover(BERT.compressed(), BERT.build(), tokenizer, random_texts(4), max_steps=1, batch_size=4)


def test_a_teacher_with_another_body_is_warned_of(
    tokenizer: PreTrainedTokenizerFast, upstream_log: pytest.LogCaptureFixture
) -> None:
    recover(BERT.compressed(), BERT.build(), tokenizer, TEXTS, **QUICK)
    assert "other weights" not in upstream_log.text
    recover(BERT.compressed(), BERT.build(seed=1), tokenizer, TEXTS, **QUICK)
    assert "The model's body has other weights than the teacher's, such as bert." in upstream_log.text


def test_a_teacher_is_loaded_by_the_class_of_the_model(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    BERT.build().save_pretrained(tmp_path)
    body = compress(BertModel.from_pretrained(tmp_path), num_clusters=3, compression=0.4, token_counts="uniform")
    recovered = recover(body, tmp_path, tokenizer, random_texts(8), **QUICK)
    assert type(recovered) is type(body)


@pytest.mark.parametrize(
    ("model_class", "lacking", "message"),
    [
        (BertForMaskedLM, ["cls"], r"lacks weights of a BertForMaskedLM, such as cls\..* Give the model with its head"),
        (BertModel, ["encoder.layer.0.output.dense.bias"], r"such as encoder\.layer\.0\.output\.dense\.bias \(of 1\)"),
        (BertForSequenceClassification, ["classifier", "bert.pooler"], None),
        (T5ForConditionalGeneration, ["decoder.final_layer_norm"], r"such as decoder\.final_layer_norm\.weight"),
    ],
)
def test_a_teacher_that_lacks_what_the_loss_depends_on_is_refused(
    model_class: Any, lacking: list[str], message: str | None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny = TINY_MODELS["t5" if model_class is T5ForConditionalGeneration else "bert"]
    dense = model_class(copy.deepcopy(tiny.config))
    kept = {name: tensor for name, tensor in dense.state_dict().items() if not name.startswith(tuple(lacking))}
    assert len(kept) < len(dense.state_dict())
    dense.save_pretrained(tmp_path, state_dict=kept)
    model = compress(dense, num_clusters=3, compression=0.4, token_counts="uniform")
    if message is None:
        assert type(recover(model, tmp_path, tokenizer, random_texts(8), **QUICK)) is type(model)
    else:
        with pytest.raises(ValueError, match=message):
            recover(model, tmp_path, tokenizer, random_texts(8), **QUICK)


def test_a_decoder_that_no_token_begins_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tiny = TINY_MODELS["t5"]
    model, teacher = tiny.compressed(), tiny.build()
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="names neither decoder_start_token_id nor bos_token_id"):
        recover(model, teacher, tokenizer, TEXTS, **QUICK)


def test_texts_that_are_held_out_are_not_trained_on() -> None:
    texts = [f"text {number}" for number in range(30)]
    assert hold_out(texts, ["else"]) == (texts[:27], texts[27:])
    assert hold_out([*texts, "text 3", "text 4"], ["else"]) == (
        [text for text in texts if text not in ("text 29", "text 3", "text 4")],
        ["text 29", "text 3", "text 4"],
    )
    assert hold_out(texts[:9], ["else"]) == (texts[:9], ["else"])
    assert len(hold_out(list(map(str, range(9000))), [])[1]) == 200
    with pytest.raises(ValueError, match="all 30 texts are equal to one of the last 3, which are kept back"):
        hold_out(["good film"] * 30, ["else"])


def test_texts_are_cut_at_the_positions_of_the_model(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.model_max_length = int(1e30)
    for name in ("bert", "roberta"):  # 40 and 38 positions
        tiny = TINY_MODELS[name]
        recovered = recover(tiny.compressed(), tiny.build(), tokenizer, ["good " * 60], **QUICK)
        assert recovered.config.projclust["recovery"][0]["texts"] == 1


def test_what_was_measured_before_is_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    model = BERT.compressed()
    model.config.projclust = model.config.projclust | {"fidelity": {}, "evaluation": {}}
    recovered = recover(model, BERT.build(), tokenizer, random_texts(8), **QUICK)
    assert not {"fidelity", "evaluation"} & set(recovered.config.projclust)
