"""How compressed models get another number of tokens: every vocabulary module in place.

Overridden of Transformers' models: ``_resize_token_embeddings``. This file travels with a checkpoint: it imports torch,
transformers and its siblings only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from transformers import PreTrainedModel

from .embedding_projclust import dense_counterpart
from .packed_projclust import PackedTable
from .vocabulary_projclust import factored_tables, vocabulary_modules

if TYPE_CHECKING:
    _NativeModel = PreTrainedModel
else:
    _NativeModel = object


class ResizingMixin(_NativeModel):
    """What a made model class adds to its native base to be resized."""

    config: Any
    native_class: ClassVar[Any]

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Resize every vocabulary module in place; rows of new tokens are those that the native class would give."""
        if self.native_class._resize_token_embeddings is not PreTrainedModel._resize_token_embeddings:
            raise ValueError(
                f"{self.native_class.__name__} resizes more than its vocabulary table; expected a class that resizes "
                "as others do. Resize the dense model, hf_projclust.decompress(model), and compress that."
            )
        groups = vocabulary_modules(self)
        embedding, head = groups["embedding"][0], self.get_output_embeddings()
        size = _padded(embedding.num_embeddings if new_num_tokens is None else new_num_tokens, pad_to_multiple_of)
        if size == embedding.num_embeddings:
            return embedding
        for module in factored_tables(self).values():
            if isinstance(module, PackedTable):  # refuses, before the dense table beside it is changed
                module.resize(size, module.scales.new_zeros(0, module.layout.dim))
        natives: dict[str, Any] = {
            "embedding": self._get_resized_embeddings(dense_counterpart(embedding), size, None, mean_resizing)
        }
        if groups["head"]:  # one that is tied follows the table, and tie_weights() pads its bias
            resized = self._get_resized_lm_head(dense_counterpart(head), size, mean_resizing=mean_resizing)
            natives["head"] = resized.requires_grad_(head.weight.requires_grad)
        factored = {name: groups[name] for name in self.config.factor_layouts if groups[name]}
        for name, modules in factored.items():
            for module in modules:
                module.resize(size, natives[name].weight[module.layout.num_embeddings :].detach())
        self.config.set_factor_layouts({name: modules[0].layout for name, modules in factored.items()})
        if "embedding" not in factored:
            self.set_input_embeddings(natives["embedding"])
        if "head" in factored:
            head.bias = natives["head"].bias
        if groups["head"]:  # some classes take over the bias here
            self.set_output_embeddings(head if "head" in factored else natives["head"])
        return embedding


def _padded(size: int, multiple: int | None) -> int:
    """A number of tokens, rounded up to a multiple."""
    for name, number in (("new_num_tokens", size), ("pad_to_multiple_of", 1 if multiple is None else multiple)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(
                f"resize_token_embeddings was given {name}={number!r}; expected a whole number, 1 or more. Give the "
                "length of the tokenizer, len(tokenizer)."
            )
    return size if multiple is None else -(-size // multiple) * multiple
