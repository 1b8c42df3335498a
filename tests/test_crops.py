"""Global and local crops of one picture, for small inputs and for the published size."""

from __future__ import annotations

import pytest

from compress_ssl.crops import LocalConfig, usual_blur
from compress_ssl.refusal import Refusal
from compress_ssl.transforms import TrainView


@pytest.mark.parametrize(
    ("size", "local", "scale", "blur"),
    [
        (8, 8, (0.2, 0.6), 0.0),
        (32, 16, (0.2, 0.6), 0.0),
        (64, 24, (0.05, 0.14), 0.5),
        (224, 96, (0.05, 0.14), 0.5),
    ],
)
def test_local_views_and_blur_follow_the_input_size(
    size: int, local: int, scale: tuple[float, float], blur: float
) -> None:
    """The published local crop of a 32-pixel picture is 7 pixels wide, and the published blur leaves no edge in it."""
    config, view = LocalConfig(), TrainView(scale=(0.14, 1.0), flip=0.0)
    assert config.size_at(size) == local
    assert config.view_at(size, view) == TrainView(scale=scale, flip=0.0)
    assert usual_blur(size) == blur


def test_what_is_asked_for_is_taken() -> None:
    """A recipe's own size and scale would be overruled in silence."""
    config = LocalConfig(size=98, scale=(0.1, 0.3))
    assert config.size_at(32) == 98
    assert config.view_at(32, TrainView()).scale == (0.1, 0.3)
    for options in ({"views": -1}, {"size": 0}, {"scale": (0.4, 0.1)}, {"scale": (0.0, 0.1)}):
        with pytest.raises(Refusal, match=rf"--method.local.{next(iter(options))} expected"):
            LocalConfig(**options)  # type: ignore[arg-type]
