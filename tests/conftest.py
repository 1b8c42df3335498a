"""What several tests share: where real images lie, when they are there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with cifar10/, tiny-imagenet-100/ and imagenet-sample/; a newcomer does not have it."""
    folder = Path(os.environ.get("COMPRESS_SSL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images in {folder}: set COMPRESS_SSL_DATA to a folder that holds cifar10/ and its like")
    return folder
