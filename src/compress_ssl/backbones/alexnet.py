"""The paper's AlexNet student: 4096 numbers, the output of f7 after its ReLU, without dropout.

Source: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, as laid out by torchvision;
Abbasi Koohpayegani et al., CompRess, NeurIPS 2020 (as a student: no dropout; evaluated layer by layer).
The dropouts are replaced by identities rather than removed, so the weights keep torchvision's names and its published
file fits. Works from 63 pixels upwards; below that the pooling runs out of image.
`layers(images)` gives what the paper's evaluation by layer looks at: c1 to c5, f6 and f7.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import AlexNet

from compress_ssl.backbones import publish
from compress_ssl.transforms import Preprocessing

PREPROCESSING = Preprocessing(size=224, crop_fraction=0.875)  # ImageNet's mean and std
LAYERS = {"c1": 1, "c2": 4, "c3": 7, "c4": 9, "c5": 11}  # the ReLU after each convolution, in `features`


def names() -> list[str]:
    return ["alexnet"]


def build(name: str) -> nn.Module | None:
    if name != "alexnet":
        return None
    model = LayeredAlexNet(num_classes=1)
    _, f6, relu6, _, f7, relu7, _ = model.classifier
    assert isinstance(f7, nn.Linear)
    model.classifier = nn.Sequential(nn.Identity(), f6, relu6, nn.Identity(), f7, relu7)
    width = f7.out_features
    return publish(model, width=width, preprocessing=PREPROCESSING, head=("classifier.6",), embedding="fc7")


class LayeredAlexNet(AlexNet):
    def layers(self, images: Tensor) -> dict[str, Tensor]:
        """Every layer's output after its ReLU.

        Returns: `c1` ... `c5`, maps (B, channels, height, width) before any pooling: 64, 192, 384, 256, 256 channels,
            at 224 pixels of side 55, 27, 13, 13, 13; `f6` and `f7`, rows (B, 4096), `f7` being the embedding.
        """
        found, maps = {}, images
        places = {place: name for name, place in LAYERS.items()}
        for place, part in enumerate(self.features):
            maps = part(maps)
            if place in places:
                found[places[place]] = maps.clone()  # the ReLUs write in place, and so may whoever reads
        _, f6, relu6, _, f7, relu7 = self.classifier
        found["f6"] = relu6(f6(self.avgpool(maps).flatten(1)))
        found["f7"] = relu7(f7(found["f6"]))
        return found
