"""The paper's AlexNet student: 4096 numbers, the output of f7 after its ReLU, without dropout.

Source: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, as laid out by torchvision;
Abbasi Koohpayegani et al., CompRess, NeurIPS 2020 (as a student: no dropout).
The dropouts are replaced by identities rather than removed, so the weights keep torchvision's names and its published
file fits. Works from 63 pixels upwards; below that the pooling runs out of image.
"""

from __future__ import annotations

from torch import nn
from torchvision.models import AlexNet

from compress_ssl.backbones import publish
from compress_ssl.transforms import Preprocessing

PREPROCESSING = Preprocessing(size=224, crop_fraction=0.875)  # ImageNet's mean and std


def names() -> list[str]:
    return ["alexnet"]


def build(name: str) -> nn.Module | None:
    if name != "alexnet":
        return None
    model = AlexNet(num_classes=1)
    _, f6, relu6, _, f7, relu7, _ = model.classifier
    assert isinstance(f7, nn.Linear)
    model.classifier = nn.Sequential(nn.Identity(), f6, relu6, nn.Identity(), f7, relu7)
    return publish(model, width=f7.out_features, preprocessing=PREPROCESSING, head=("classifier.6",))
