"""Names of metrics: what a column with little room calls them, what that means, and which only tell how much another
one varies."""

from __future__ import annotations

import re
from collections.abc import Iterable

SPREADS = ("_std", "_interval")  # ends of names: how much the metric of the name before varies over repeats
HEADLINE = ("nearest_neighbour", "nearest_neighbour_20", "linear_probe", "cluster_alignment")  # where there is one line
PER_CLASS = "_per_class"  # end of a name: the mean over the classes

SHORT = (  # a name -> its heading
    ("nearest_neighbour", "1-NN"),
    (r"nearest_neighbour_(\d+)", r"\1-NN"),
    ("linear_probe", "linear"),
    (r"linear_probe_(\d+)", r"linear top-\1"),
    ("cluster_alignment", "CA"),
    (r"neighbour_overlap_(\d+)", r"kept@\1"),
    ("asymmetric_nearest_neighbour", "asym. 1-NN"),
    ("cka", "CKA"),
    ("cka_unbiased", "CKA unbiased"),
    (r"few_labels_([\d.]+)", r"\1 % labels"),
    (r"few_labels_([\d.]+)_top_(\d+)", r"\1 % labels, top-\2"),
    (r"n_shot_nearest_neighbour_(\d+)", r"\1-shot 1-NN"),
    (r"n_shot_class_mean_(\d+)", r"\1-shot mean"),
    ("retrieval_map", "mAP"),
    (r"retrieval_map_(\d+)", r"mAP@\1"),
    (r"retrieval_(recall|precision)_(\d+)", r"\1@\2"),
)
EXPLAINED = (  # metrics whose headings do not say what they are
    ("cluster_alignment", "CA, cluster alignment: images in a cluster that is matched with their class"),
    (r"linear_probe_(\d+)",
     r"linear top-\1: images whose class is among the \1 that the linear layer finds likeliest"),
    (r"neighbour_overlap_(\d+)", "kept@K: of the teacher's K nearest neighbours, the share that the student keeps"),
)  # fmt: skip


def heading(metric: str) -> str:
    """What a column is called: kept@10 for neighbour_overlap_10; of somebody's own metric, its name in words.

    >>> heading("linear_probe_5")
    'linear top-5'
    """
    name = metric.removesuffix(PER_CLASS)
    short = next((found.expand(to) for pattern, to in SHORT if (found := re.fullmatch(pattern, name))), None)
    return (short or name.replace("_", " ")) + (" by class" if name != metric else "")


def explanations(metrics: Iterable[str]) -> list[str]:
    """What the headings of these metrics mean, each once, where they do not say it themselves.

    >>> explanations(["linear_probe", "linear_probe_3"])
    ['linear top-3: images whose class is among the 3 that the linear layer finds likeliest']
    """
    names = list(metrics)
    told = [found.expand(words) for pattern, words in EXPLAINED for name in names
            if (found := re.fullmatch(pattern, name))]  # fmt: skip
    return list(dict.fromkeys(told))


def without_spreads(metrics: Iterable[str]) -> list[str]:
    """The metrics in their order, less those that tell how much another one of them varies."""
    names = list(dict.fromkeys(metrics))
    return [name for name in names if not (name.endswith(SPREADS) and name.rpartition("_")[0] in names)]
