"""Starts the Hub of a test session when it is imported, and lets nothing in the session reach another.

``huggingface_hub`` reads its environment once, when it is imported, so this module has to be imported before it.
Whatever goes to another host by HTTPS is sent to the loopback Hub as its proxy, which refuses it and notes it in
``HUB.requests``. Processes that tests start inherit the environment.
"""

import atexit
import os
import sys
import tempfile

from loopback_hub.server import LoopbackHub

_FOREIGN = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE")

if "huggingface_hub" in sys.modules:
    raise RuntimeError(
        "huggingface_hub was imported before the loopback Hub had its address, so that tests would reach the real Hub; "
        "import loopback_hub.session first."
    )

for _name in [name for name in os.environ if name.startswith(_FOREIGN)]:
    del os.environ[_name]

HUB = LoopbackHub().start()
_home = tempfile.TemporaryDirectory(prefix="hf-home-")
atexit.register(_home.cleanup)
atexit.register(HUB.stop)

os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": _home.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name, _value in (("https_proxy", HUB.url), ("no_proxy", "127.0.0.1,localhost")):
    os.environ |= {_name: _value, _name.upper(): _value}
