"""What a forward pass keeps for its backward pass: of the memory that a training needs, the part to be measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def activation_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd saves for this batch, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        rows = model(images)
    del rows
    return sum(kept.values())
