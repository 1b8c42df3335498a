"""Data sets in tests never touch the user's own cache."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh cache folder, which COMPRESS_SSL_HOME names for the length of one test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("COMPRESS_SSL_HOME", str(folder))
    return folder
