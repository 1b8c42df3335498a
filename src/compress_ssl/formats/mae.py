"""MAE: masked autoencoder; the encoder alone is kept.

Layouts: `{"model": ...}` (beside `optimizer`, `epoch`, `scaler`, `args` when it is a training's own): a ViT in timm's
names, `pos_embed` with the class token's zeros included. With `decoder_*` and `mask_token` when the whole autoencoder
was saved; the `mae_pretrain_*.pth` files hold the encoder alone, and nothing tells these from other people's, so their
format is to be named.
Embedding: the class token after the encoder's last norm, as in the authors' linear probe (fine-tuning there averages
the patches and starts another norm, `fc_norm`, for which a pretraining has no weights). Evaluation: short side 256
(bicubic), centre 224, ImageNet's mean and std. The positions are fixed sines and cosines, and read from the file. At
another size they are interpolated as in the authors' `interpolate_pos_embed`: bicubic, no antialiasing.
Source: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022; names and evaluation of the authors'
code (facebookresearch/mae: models_mae.py, main_linprobe.py, util/misc.py). Not read: fine-tuned classifiers. Not
verified: against the published files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress_ssl import vit
from compress_ssl.formats import Found, bare_vit, sort, states
from compress_ssl.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

TITLE = "MAE"
SIGNS = ("decoder_blocks.", "decoder_embed.", "decoder_pred.", "mask_token", "patch_embed.proj.")
PREPROCESSING: Preprocessing | None = Preprocessing(interpolation="bicubic", crop_fraction=0.875)
EMBEDDING = "cls"
PATTERN = "timm/vit_{size}_patch{patch}_224"
DROP = {"decoder_": "decoder", "mask_token": "decoder"}


def find(content: Mapping[str, Any], *, named: bool) -> Found | None:
    for under, state in states(content, ("model",), ()):
        encoder = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(DROP))}
        trunk = vit.trunk(encoder)
        if trunk is not None and vit.is_bare(encoder) and "decoder_embed.weight" in state:
            return sort(content, under=under, drop=DROP, architecture=trunk.name(PATTERN))
    return bare_vit(content, pattern=PATTERN) if named else None


def fit(found: Found, backbone: Any) -> dict[str, Tensor]:
    return vit.at_backbones_size(found.tensors, backbone)
