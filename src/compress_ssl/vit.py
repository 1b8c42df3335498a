"""Vision transformers in checkpoints: what their shapes say, and their position embeddings at another size.

Most publications name the tensors of a ViT as timm does (`patch_embed.proj`, `blocks.0.attn.qkv`, ..., `norm`), so what
is left to do is to see which ViT it is, and to interpolate the positions as its authors do. They differ in that, and a
difference in the third digit of each embedding is not to be seen by anybody later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge", 1536: "giant"}
BLOCK = re.compile(r"blocks\.(\d+)\.")


class Trunk(NamedTuple):
    """A ViT in timm's names, by its shapes.

    grid: patches on a side, as far as the position embeddings tell; 0 without them.
    """

    width: int
    patch: int
    depth: int
    grid: int

    def name(self, pattern: str) -> str | None:
        """`timm/vit_{size}_patch{patch}_224` with the words filled in; None for a width that has no name.

        `{pixels}` stands for the side of the input.
        """
        size = SIZES.get(self.width)
        pixels = self.grid * self.patch
        return None if size is None else pattern.format(size=size, patch=self.patch, pixels=pixels)


def trunk(state: Mapping[str, Any], prefix: str = "") -> Trunk | None:
    """The ViT whose tensors stand behind `prefix`; None if there is none."""
    kernel = state.get(f"{prefix}patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4 or f"{prefix}blocks.0.norm1.weight" not in state:
        return None
    found = [BLOCK.match(name.removeprefix(prefix)) for name in state if name.startswith(f"{prefix}blocks.")]
    depth = 1 + max(int(one[1]) for one in found if one)
    positions = state.get(f"{prefix}pos_embed")
    grid = isqrt(positions.shape[1]) if positions is not None else 0  # a class token does not fill another row
    return Trunk(kernel.shape[0], kernel.shape[2], depth, grid)


def is_bare(state: Mapping[str, Any], prefix: str = "") -> bool:
    """Is this a ViT with class token and position embeddings, and nothing else that would tell whose it is?"""
    if trunk(state, prefix) is None or f"{prefix}cls_token" not in state:
        return False
    kinds = {BLOCK.sub("", name.removeprefix(prefix)) for name in state if name.startswith(prefix)}
    return kinds == BARE


BARE = {"cls_token", "pos_embed"} | {
    f"{layer}.{kind}"
    for layer in ("patch_embed.proj", "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2", "norm")
    for kind in ("weight", "bias")
}


def at_backbones_size(
    tensors: Mapping[str, Tensor], backbone: Any, *, prefix_tokens: int = 1, offset: float = 0, antialias: bool = False
) -> dict[str, Tensor]:
    """The tensors with `pos_embed` interpolated to the patches that the backbone has.

    Args:
        prefix_tokens: positions before those of the patches.
        offset, antialias: as in `interpolate`.
    """
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    changed = dict(tensors)
    if grid is not None and "pos_embed" in changed:
        changed["pos_embed"] = interpolate(
            changed["pos_embed"], grid[0], prefix_tokens=prefix_tokens, offset=offset, antialias=antialias
        )
    return changed


def interpolate(
    positions: Tensor, grid: int, *, prefix_tokens: int = 1, offset: float = 0, antialias: bool = False
) -> Tensor:
    """Position embeddings of a square grid at another one, bicubic, in float32.

    Args:
        positions: (1, prefix_tokens + n · n, D).
        offset: added to the new side when the scale is computed, 0.1 in DINO, iBOT and DINOv2 without registers. Meant
            against rounding, it shifts every position a little; models were evaluated with it.
    Returns: (1, prefix_tokens + grid · grid, D); the same tensor where nothing is to be done.
    """
    import torch
    from torch.nn import functional

    first, patches = positions[:, :prefix_tokens], positions[:, prefix_tokens:]
    side = isqrt(patches.shape[1])
    if side == grid or side * side != patches.shape[1]:  # what is no square is refused by its shape
        return positions
    plane = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if offset:
        scale = (grid + offset) / side
        plane = functional.interpolate(plane, scale_factor=(scale, scale), mode="bicubic", antialias=antialias)
    else:
        plane = functional.interpolate(plane, size=(grid, grid), mode="bicubic", antialias=antialias)
    return torch.cat([first.float(), plane.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
