"""The trained model: images -> query. An encoder, and for some objectives a projector into the teacher's space."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from compress_ssl.encoder import Encoder, save_encoder
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import write_atomically


class Student(nn.Module):
    """Images (B, 3, H, W) uint8 -> unit rows (B, projector_width or the encoder's width), float32.

    A row that is exactly zero stays zero: early in training a ReLU feature may be.
    """

    def __init__(self, encoder: Encoder, projector_width: int | None):
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Linear(encoder.width, projector_width) if projector_width else nn.Identity()
        self.width = projector_width or encoder.width

    def forward(self, images: Tensor) -> Tensor:
        return functional.normalize(self.projector(self.encoder(images)).float(), dim=1)


def save_student(student: Student, folder: Path) -> None:
    """Write the encoder as a deployable folder; the projector, if there is one, beside it.

    The projector goes first: whoever reads the folder in between finds an old encoder with a new projector for the
    length of one rename, and after a kill the next save mends it.
    """
    if isinstance(student.projector, nn.Linear):
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in student.projector.state_dict().items()}
        write_atomically(folder / "projector.safetensors", save(state))
    save_encoder(student.encoder, folder)


def load_projector(folder: Path) -> nn.Linear | None:
    """The projector of a student's folder, None if it was trained without.

    Raises: Refusal if the file is damaged.
    """
    file = folder / "projector.safetensors"
    if not file.exists():
        return None
    try:
        state = load_file(file)
        projector = nn.Linear(state["weight"].shape[1], state["weight"].shape[0])
        projector.load_state_dict(state)
    except (SafetensorError, KeyError, IndexError, RuntimeError) as trouble:
        told = " ".join(str(trouble).split())  # torch lists what does not fit on lines of their own
        raise Refusal(f"expected a linear projector in {file}, got {told}: restore the file") from trouble
    return projector.requires_grad_(False)
