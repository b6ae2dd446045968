"""A Hugging Face Hub on the loopback interface, for tests of what is pushed and pulled.

It speaks real HTTP to the real ``huggingface_hub`` client, checks tokens, hashes, sizes and model cards as the Hub
does, and fails on demand (see ``Fault``). It serves model repositories alone: no data sets, Spaces, discussions beside
pull requests, search, Xet storage, uploads in parts, gating, rules of .gitignore, or pages of long lists.

    >>> with LoopbackHub() as hub:
    ...     hub.users["hf_secret"] = "alice"
    ...     create_repo("alice/model", token="hf_secret")
    ...     hub.files("alice/model").keys()
    dict_keys(['.gitattributes'])
"""

from loopback_hub.faults import Fault
from loopback_hub.server import LoopbackHub

__all__ = ["Fault", "LoopbackHub"]
