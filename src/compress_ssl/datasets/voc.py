"""PASCAL VOC, a folder such as VOCdevkit/VOC2007: trainval to train, test to test.

Without a test split (VOC 2012 publishes none) train and val take their places. An image holds objects of several
classes, which no single label says: all labels are -1. `compress-ssl voc` scores by the objects in Annotations.
Ids are paths below the folder, JPEGImages/000005.jpg, in the order of the splits' files.
Layout: `compress_ssl.voc_layout`.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from compress_ssl.datasets import Splits, Unusual
from compress_ssl.datasets import parquet as _parquet
from compress_ssl.datasets.image_folder import FolderImages
from compress_ssl.voc_layout import halves, image_paths, is_voc


def claims(name: str) -> bool:
    """The layout's folders, with no parquet beside them that would be read instead."""
    return is_voc(Path(name)) and not _parquet.claims(name)


def open_splits(name: str, *, unusual: Unusual, max_pixels: int) -> Splits:
    root = Path(name)
    both = halves(root)
    train, test = (
        FolderImages(
            f"{name}:{split}",
            os.fsencode(name),
            [os.fsencode(path) for path in image_paths(root, ids)],
            np.full(len(ids), -1, dtype=np.int64),
            (),
            unusual=unusual,
            max_pixels=max_pixels,
        )
        for split, ids in zip(both.names, (both.learn, both.report), strict=True)
    )
    return Splits(train=train, test=test)
