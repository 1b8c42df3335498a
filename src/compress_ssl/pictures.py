"""What a person can look at: a dozen queries with their neighbours under each model, and images of random clusters.

Source of the cluster view: CompRess, Fig. 3 (random images from random clusters, one row a cluster).
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from compress_ssl.clustering import k_means
from compress_ssl.datasets import ImageSet
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded, own_rows
from compress_ssl.neighbours import nearest_neighbours

QUERIES, NEIGHBOURS, CLUSTERS, MEMBERS = 12, 6, 12, 10
LONGEST_SIDE = 96  # pixels of a thumbnail; some 3 kB each keep a page of three models under 2 MB


def choose(models: dict[str, Embedded], train: ImageSet, test: ImageSet, *, seed: int = 0) -> dict[str, Any]:
    """Queries, neighbours, clusters and thumbnails, as pictures.json keeps them.

    Args:
        models: name -> embeddings of the same images; queries are drawn from test, neighbours and clusters from train.
        train, test: where the images are read.
    """
    first = next(iter(models.values()))
    random = np.random.default_rng(seed)
    queries = np.sort(random.permutation(len(first.test.ids))[:QUERIES])
    count = len({int(label) for label in first.train.labels if label >= 0}) or 10
    # cat/1.png may be in both splits, two pictures with one id: such queries get a name of their own
    shared = set(train.ids)
    query_names = {id: f"{id} (test)" if id in shared else id for id in (first.test.ids[query] for query in queries)}
    neighbours: dict[str, dict[str, list[str]]] = {}
    clusters: dict[str, list[list[str]]] = {}
    gallery: set[str] = set()
    asked = tuple(first.test.ids[query] for query in queries)
    own = own_rows(Embeddings(first.test.rows[queries], first.test.labels[queries], asked), first.train)
    for name, embedded in models.items():
        rows, asking = torch.from_numpy(embedded.train.rows), torch.from_numpy(embedded.test.rows[queries])
        found = nearest_neighbours(asking, rows, count=NEIGHBOURS, own=own)[1].numpy()
        neighbours[name] = {
            query_names[embedded.test.ids[query]]: [embedded.train.ids[place] for place in places]
            for query, places in zip(queries, found, strict=True)
        }
        assigned = k_means(embedded.train.rows, clusters=count, iterations=20, seed=seed, start="random", attempts=1)[1]
        present = np.unique(assigned)
        clusters[name] = []
        for cluster in np.sort(np.random.default_rng(seed).permutation(present)[:CLUSTERS]):
            members = np.random.default_rng((seed, int(cluster))).permutation(np.flatnonzero(assigned == cluster))
            clusters[name].append([embedded.train.ids[place] for place in members[:MEMBERS]])
        gallery |= {id for ids in [*neighbours[name].values(), *clusters[name]] for id in ids}
    places = {id: (train, place) for place, id in enumerate(train.ids) if id in gallery}
    places |= {query_names[id]: (test, place) for place, id in enumerate(test.ids) if id in query_names}
    return {
        "queries": list(query_names.values()),
        "neighbours": neighbours,
        "clusters": clusters,
        "pictures": {id: _thumbnail(images.read(place)) for id, (images, place) in places.items()},
        "labels": {id: _label(images, place) for id, (images, place) in places.items()},
    }


def _label(images: ImageSet, place: int) -> str | None:
    label = int(images.labels[place])
    return None if label < 0 else images.classes[label] if label < len(images.classes) else str(label)


def _thumbnail(picture: np.ndarray) -> str:
    """(H, W, 3) uint8 -> a data URL; small pictures stay exact, large ones become JPEG."""
    image = Image.fromarray(picture)
    buffer = io.BytesIO()
    if max(image.size) <= LONGEST_SIDE // 2:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        image.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
