"""compress-ssl: compress a self-supervised vision encoder into a small one that keeps its neighbourhoods.

A verb is `compress_ssl.VERB.run(compress_ssl.VERB.Config(…))`: pretrain, shrink, embed, distill, evaluate, …
The nouns below are imported when they are first asked for: `import compress_ssl` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress_ssl.bank import Bank as Bank
    from compress_ssl.datasets import open_splits as open_splits
    from compress_ssl.embeddings import Embeddings as Embeddings
    from compress_ssl.encoder import Encoder as Encoder
    from compress_ssl.encoder import open_encoder as open_encoder
    from compress_ssl.refusal import Refusal as Refusal
    from compress_ssl.similarity import anchor_kl as anchor_kl
    from compress_ssl.table import Table as Table

__version__ = "0.1.0"

_HOMES = {
    "Bank": "bank",
    "Embeddings": "embeddings",
    "Encoder": "encoder",
    "Refusal": "refusal",
    "Table": "table",
    "anchor_kl": "similarity",
    "open_encoder": "encoder",
    "open_splits": "datasets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
