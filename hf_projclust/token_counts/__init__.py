"""How often each token is used in running text: from a corpus, word frequencies, the tokenizer, or given counts."""

from .counting import check_tokenizer, count_tokens
from .sources import check_sources, describe_sources, names_files

__all__ = ["check_sources", "check_tokenizer", "count_tokens", "describe_sources", "names_files"]
