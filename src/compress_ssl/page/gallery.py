"""pictures.json -> what stands side by side on the page, and every picture once, as a rule of the style sheet."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    """One set of pictures, several models: queries with their neighbours, and clusters."""

    queries: list[str]
    teachers: list[str]  # as shown; one, or all that taught
    pictures: dict[str, str] = field(default_factory=dict)  # id -> data URI
    labels: dict[str, str | None] = field(default_factory=dict)
    neighbours: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # model as shown -> query -> ids
    clusters: dict[str, list[list[str]]] = field(default_factory=dict)
    where: list[str] = field(default_factory=list)  # labels of its folders

    def owners(self, neighbour: str, query: str) -> list[str]:
        """The teachers that have this neighbour."""
        return [teacher for teacher in self.teachers if neighbour in self.neighbours[teacher][query]]

    def kept(self, model: str, query: str) -> list[str]:
        """What a student kept, a line for each teacher; of several it is named."""
        found = self.neighbours[model][query]
        shared = [len(set(found) & set(self.neighbours[teacher][query])) for teacher in self.teachers]
        if len(shared) == 1:
            return [f"{shared[0]} of {len(found)} kept"]
        pairs = zip(shared, self.teachers, strict=True)
        return [f"{count} of {teacher}’s {len(self.neighbours[teacher][query])} kept" for count, teacher in pairs]

    def is_wrong(self, neighbour: str, query: str) -> bool:
        """Whether both are labelled, and differently."""
        classes = {self.labels[neighbour], self.labels[query]}
        return len(classes) == 2 and None not in classes

    def majority(self, ids: Sequence[str]) -> str:
        """ "7 of 10 are cat", "" without labels."""
        labels = Counter(self.labels[id_] for id_ in ids if self.labels[id_] is not None)
        return "".join(f"{count} of {labels.total()} are {label}" for label, count in labels.most_common(1))


def galleries(folders: Sequence[Folder], models: dict[tuple[str, str], Model]) -> list[Gallery]:
    """Pictures of the folders; those with the same queries and the same neighbours under the teacher become one."""
    found: dict[str, Gallery] = {}
    for folder in folders:
        told = folder.pictures
        if told is None:
            continue
        shown = {known: model.name for (label, known), model in models.items() if label == folder.label}
        names = {known: shown.get(known, known) for known in told["neighbours"]}  # pictures may be older than results
        teaching = {known for (label, known), model in models.items() if label == folder.label and model.teaches}
        teachers = [known for place, known in enumerate(names) if not place or known in teaching]
        same = json.dumps([told["queries"], [[names[known], told["neighbours"][known]] for known in teachers]])
        one = found.setdefault(same, Gallery(told["queries"], [names[known] for known in teachers]))
        one.pictures |= told["pictures"]
        one.labels |= told["labels"]
        one.neighbours |= {names[known]: rows for known, rows in told["neighbours"].items()}
        one.clusters |= {names[known]: rows for known, rows in told["clusters"].items()}
        one.where.append(folder.label)
    return list(found.values())


def picture_rules(found: Sequence[Gallery]) -> tuple[dict[str, int], Markup]:
    """Data URI -> number n, and the CSS that paints picture n on class "p{n}"."""
    where = {uri: f"image {id_!r} of {', '.join(one.where)}" for one in found for id_, uri in one.pictures.items()}
    shrink = sum(map(len, where)) > PICTURE_BUDGET
    painted = [picture(uri, shrink=shrink, where=place) for uri, place in where.items()]
    rules = [f".p{number}{{background-image:url({uri}){sharp}}}" for number, (uri, sharp) in enumerate(painted)]
    return {uri: number for number, uri in enumerate(where)}, Markup("\n".join(rules))


def picture(uri: str, *, shrink: bool, where: str) -> tuple[str, str]:
    """A data URI that is safe to write into a style sheet, and what else its rule says.

    Raises: Refusal if it is anything but a picture inside the file: an address would load something from elsewhere.
    """
    match = DATA_URI.fullmatch(uri)
    try:
        image = Image.open(io.BytesIO(base64.b64decode(match[1]) if match else b""))
    except (OSError, ValueError) as error:
        raise Refusal(
            f"expected a picture as data:image/…;base64,… for {where}, got {uri[:40]!r}: evaluate again"
        ) from error
    if max(image.size) <= TINY_SIDE:
        return uri, ";image-rendering:pixelated"
    if shrink:
        written = io.BytesIO()
        image.convert("RGB").save(written, format="WEBP", quality=90)
        uri = min(uri, "data:image/webp;base64," + base64.b64encode(written.getvalue()).decode(), key=len)
    return uri, ""
