"""Every model class of the installed Transformers, by name; and what the two sweeps share."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from tiny_configs import tiny_config
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto

# As different as possible: one class each of the popular types.
PINNED = (
    ("albert", "AlbertForMaskedLM"),  # a table narrower than the model
    ("bart", "BartForConditionalGeneration"),  # scaled embedding, ties within ties
    ("bert", "BertForMaskedLM"),
    ("blip-2", "Blip2ForConditionalGeneration"),  # three models in one
    ("clip", "CLIPTextModelWithProjection"),
    ("deberta-v2", "DebertaV2ForSequenceClassification"),
    ("electra", "ElectraForPreTraining"),
    ("falcon_h1", "FalconH1ForCausalLM"),  # attention and state space
    ("gemma3", "Gemma3ForConditionalGeneration"),  # scaled embedding in a nested text model
    ("gpt2", "GPT2DoubleHeadsModel"),  # in no Auto mapping
    ("gpt_oss", "GptOssForCausalLM"),  # experts
    ("llama", "LlamaForCausalLM"),
    ("m2m_100", "M2M100ForConditionalGeneration"),  # scaled embedding, shared table
    ("mamba", "MambaForCausalLM"),
    ("mllama", "MllamaForCausalLM"),  # a text model of a composite's configuration
    ("modernbert", "ModernBertForTokenClassification"),
    ("mpnet", "MPNetModel"),
    ("ovis2", "Ovis2ForConditionalGeneration"),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration"),  # names in the file are not those in memory
    ("qwen3_moe", "Qwen3MoeForCausalLM"),
    ("t5", "T5ForConditionalGeneration"),  # one table, four modules
    ("vibevoice_asr", "VibeVoiceAsrForConditionalGeneration"),  # text with an audio part that knows no SDPA
    ("whisper", "WhisperForConditionalGeneration"),  # a table in the decoder only
    ("xlm-roberta", "XLMRobertaForQuestionAnswering"),
    ("xlnet", "XLNetLMHeadModel"),
)


AUTO_CLASSES = frozenset(
    (model_type, class_name)
    for mapping, entries in vars(modeling_auto).items()
    if mapping.startswith("MODEL_") and mapping.endswith("_MAPPING_NAMES")
    for model_type, names in entries.items()
    for class_name in ([names] if isinstance(names, str) else names)
)


def every_model_class() -> list[tuple[str, str]]:
    """Model type and class name of what the Auto mappings name, and of every other public model class."""
    in_auto = {class_name for _, class_name in AUTO_CLASSES}
    others = {
        (module.split(".")[1], class_name)
        for class_name, module in transformers._class_to_module.items()
        if module.startswith("models.") and ".modeling_" in module and not module.startswith("models.auto.")
        if class_name not in in_auto and not class_name.endswith("PreTrainedModel")
    }
    return sorted(AUTO_CLASSES | others)


def classes(model_type: str, class_name: str) -> tuple[Any, Any]:
    """Configuration class and model class; skips what is no model, or needs a library that is not installed."""
    try:
        native_class = getattr(transformers, class_name)
        is_model = isinstance(native_class, type) and issubclass(native_class, PreTrainedModel)
        own_config: Any = native_class.config_class if is_model else None
    except (ImportError, AttributeError) as error:
        pytest.skip(f"not installed: {_first_words(error)}")
    if own_config is None:
        pytest.skip("no model")
    if (model_type, class_name) not in AUTO_CLASSES:
        return own_config, native_class
    config_class = CONFIG_MAPPING[model_type]
    return (own_config if own_config in config_class.sub_configs.values() else config_class), native_class


def tiny_model(model_type: str, class_name: str, device: str) -> Any:
    """A tiny native model in evaluation mode; skips what Transformers itself cannot build."""
    config_class, native_class = classes(model_type, class_name)
    try:
        config = tiny_config(config_class)
    except Exception as error:  # noqa: BLE001 (whatever the class raises)
        pytest.skip(f"no configuration: {type(error).__name__}: {_first_words(error)}")
    return build(native_class, config, device)


def build(native_class: Any, config: Any, device: str) -> Any:
    """A native model in evaluation mode; skips what Transformers itself cannot build."""
    torch.manual_seed(0)
    try:
        with torch.device(device):
            return native_class(config).eval()
    except Exception as error:  # noqa: BLE001 (whatever the class raises)
        pytest.skip(f"native class cannot be built: {type(error).__name__}: {_first_words(error)}")


@contextlib.contextmanager
def no_skip() -> Iterator[None]:
    """Fail where a check skips: a pinned class has to be one that it can tell of."""
    try:
        yield
    except pytest.skip.Exception as reason:
        pytest.fail(str(reason))


def _first_words(error: Exception) -> str:
    return " ".join(str(error).split())[:70]
