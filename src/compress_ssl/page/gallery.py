"""pictures.json -> cards of queries with their neighbours, rows of clusters, and every picture once as a style rule."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from PIL import Image

from compress_ssl.page.folders import Folder
from compress_ssl.page.models import Model
from compress_ssl.refusal import Refusal

PICTURE_BUDGET = 1_200_000  # characters of picture data on a page; beyond it pictures become WebP
TINY_SIDE = 20  # pixels up to which a picture is enlarged as sharp squares; 32 px photographs look better smoothed
DATA_URI = re.compile(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/]+={0,2})")


@dataclass
class Gallery:
    """What stands side by side: one set of pictures, several models, the teacher first."""

    queries: list[str]
    teacher: str
    pictures: dict[str, str] = field(default_factory=dict)  # id -> data URI
    labels: dict[str, str | None] = field(default_factory=dict)
    neighbours: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # model as shown -> query -> ids
    clusters: dict[str, list[list[str]]] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)  # labels of its folders

    def thumbnail(self, id_: str) -> dict[str, Any]:
        return {"uri": self.pictures[id_], "id": id_, "label": self.labels[id_]}

    def cards(self) -> list[dict[str, Any]]:
        """For each query: its picture, and for each model its neighbours with what the teacher says about them."""
        return [{**self.thumbnail(query), "rows": [self.row(query, name) for name in self.neighbours]} for query in self.queries]

    def row(self, query: str, name: str) -> dict[str, Any]:
        """Neighbours of one query under one model."""
        is_teacher, label = name == self.teacher, self.labels[query]
        neighbours = []
        for id_ in self.neighbours[name][query]:
            shared = not is_teacher and id_ in self.neighbours[self.teacher][query]
            wrong = None not in (label, self.labels[id_]) and label != self.labels[id_]
            neighbours.append({**self.thumbnail(id_), "shared": shared, "wrong": wrong})
        return {"name": name, "is_teacher": is_teacher, "neighbours": neighbours}

    def cluster(self, ids: Sequence[str]) -> dict[str, Any]:
        """Images of one cluster and the class that most of them have."""
        labels = Counter(self.labels[id_] for id_ in ids if self.labels[id_] is not None)
        label, count = labels.most_common(1)[0] if labels else (None, 0)
        return {"pictures": list(map(self.thumbnail, ids)), "label": label, "count": count, "of": labels.total()}


def galleries(folders: Sequence[Folder], models: dict[tuple[str, str], Model]) -> list[Gallery]:
    """Pictures of the folders; those with the same queries and the same neighbours under the teacher become one."""
    found: dict[str, Gallery] = {}
    for folder in folders:
        told = folder.pictures
        if told is None:
            continue
        names = {known: models[folder.label, known].name for known in told["neighbours"]}
        teacher = next(iter(names))
        same = json.dumps([names[teacher], told["queries"], told["neighbours"][teacher]])
        one = found.setdefault(same, Gallery(told["queries"], names[teacher]))
        one.pictures |= told["pictures"]
        one.labels |= told["labels"]
        one.neighbours |= {names[known]: rows for known, rows in told["neighbours"].items()}
        one.clusters |= {names[known]: rows for known, rows in told["clusters"].items()}
        one.where.append(folder.label)
    return list(found.values())
