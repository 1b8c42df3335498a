"""The trained model: images -> query. An encoder, and for some objectives a projector into the teacher's space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl.encoder import Encoder, save_encoder
from compress_ssl.patch_tokens import token_rows, with_patches
from compress_ssl.projector import About, save_projector


class Student(nn.Module):
    """Images (B, 3, H, W) uint8 -> unit rows (B, D_s), float32; of several projectors theirs side by side.

    A row that is exactly zero stays zero: early in training a ReLU feature may be.

    Args:
        projectors: one for each teacher; without any the encoder's rows are the query.
        token_sides: for each teacher, the side of the grid on which patch tokens are compared; they follow its row,
            (B, D_s + side² · D_token). None: no tokens.
    """

    def __init__(self, encoder: Encoder, *projectors: nn.Module, token_sides: Sequence[int] = ()):
        super().__init__()
        self.encoder, self.token_sides = encoder, tuple(token_sides)
        self.projector = nn.ModuleList(projectors) if len(projectors) > 1 else [*projectors, nn.Identity()][0]

    def projectors(self) -> list[nn.Module]:
        """One for each teacher."""
        return list(self.projector) if isinstance(self.projector, nn.ModuleList) else [self.projector]

    def forward(self, images: Tensor) -> Tensor:
        features, patches = with_patches(self.encoder, images) if self.token_sides else (self.encoder(images), None)
        rows = [functional.normalize(project(features).float(), dim=1) for project in self.projectors()]
        if patches is not None:
            sides = zip(rows, self.token_sides, strict=True)
            rows = [torch.cat([row, token_rows(patches, side)], dim=1) for row, side in sides]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def save_student(student: Student, folder: Path, projected: Sequence[About] = ()) -> None:
    """Write the encoder as a deployable folder; the projectors that lead anywhere beside it.

    The projectors go first: whoever reads the folder in between finds an old encoder with new projectors for the
    length of one rename, and after a kill the next save mends it.

    Args:
        projected: of each of the student's projectors; none needed for a student without.
    Raises: ValueError if it has others than that.
    """
    modules = [] if isinstance(student.projector, nn.Identity) and not projected else student.projectors()
    if len(modules) != len(projected):
        raise ValueError(f"expected what is to be said of {len(modules)} projectors, got it of {len(projected)}: give "
                         "an `About` for each")  # fmt: skip
    for number, (module, about) in enumerate(zip(modules, projected, strict=True), 1):
        if about.space == "own" and len(about.shape.widths) == 1:
            continue  # the encoder's rows themselves
        file = "projector.safetensors" if len(projected) == 1 else f"projector_{number}.safetensors"
        save_projector(module, folder / file, about)
    save_encoder(student.encoder, folder)
