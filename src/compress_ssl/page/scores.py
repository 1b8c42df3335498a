"""What the page calls each score and cost, and what it says of them: a reader has never heard of any."""

from __future__ import annotations

import re
from dataclasses import dataclass

from compress_ssl.metric_names import PER_CLASS


@dataclass(frozen=True)
class Score:
    """Metrics whose names match `pattern`; in `heading` and `meaning`, {0} stands for the first number in the name.

    family: what several of them are called together, "" for one that is alone.
    """

    pattern: str
    heading: str
    meaning: str
    family: str = ""


FEW = ("share of test images that one linear layer classifies rightly when it has seen the labels of so many per "
       "cent of the training images; top 5: the class is among the five likeliest. Mean over draws of those images ±"
       " standard deviation over the draws.")  # fmt: skip
SHOTS = ("share of test images classified rightly from so many labelled images of each class, by the nearest of them"
         " or the nearest mean of a class. Mean over draws of those images ± 95 % confidence interval of that "
         "mean.")  # fmt: skip
CONFUSION = ("by the nearest training image, the share of test images of each class that is recognised: of the worst"
             " class, and the mean over classes. Of the clusters, without matching them with classes: the mutual "
             "information of clusters and classes as a share of the most there could be, and the adjusted Rand "
             "index, 0 at chance.")  # fmt: skip
RETRIEVAL = ("training images ranked by their nearness to a test image. mAP: mean average precision of finding its "
             "class. Recall: share of test images with one of their class among the first so many. Precision: share "
             "of their class among the first so many.")  # fmt: skip
CKA = ("how alike the model’s and the teacher’s embeddings of the test images are, up to a turn and a scale (linear "
       "CKA); the unbiased one is not raised by few images.")  # fmt: skip
SCORES = (
    Score("nearest_neighbour", "1-NN",
          "share of test images whose nearest training image, by embedding, is of the same class."),
    Score(r"nearest_neighbour_(\d+)", "{0}-NN",
          "share of test images to which their {0} nearest training images, voting, give the right class."),
    Score("linear_probe", "Linear probe",
          "share of test images that one linear layer, trained with labels on the frozen embeddings, classifies "
          "rightly."),
    Score(r"linear_probe_(\d+)", "Linear probe, top {0}",
          "share of test images whose class is among the {0} that the layer of the linear probe thinks likeliest."),
    Score("linear_transfer", "Linear transfer",
          "share of test images that one linear layer on the frozen embeddings classifies rightly, its penalty "
          "picked on a held-out part of the training images."),
    Score("cluster_alignment", "Cluster alignment",
          "training images are clustered without labels, as many clusters as classes, and each cluster is matched to"
          " one class; share of test images that fall into a cluster of their own class."),
    Score("neighbour_overlap_1", "Neighbours kept, of 1",
          "share of test images to which one and the same image is nearest under the teacher and under the student; "
          "needs no labels."),
    Score("neighbour_overlap_10", "Neighbours kept, of 10",
          "of the 10 images nearest to an image under the teacher, how many are among the 10 nearest under the "
          "student, on average; needs no labels."),
    Score(r"neighbour_overlap_(\d+)", "Neighbours kept, of {0}",
          "of the {0} images nearest to an image under the teacher, the share that is among the {0} nearest under "
          "the student, on average; needs no labels."),
    Score("asymmetric_nearest_neighbour", "Asymmetric 1-NN",
          "1-NN with the question embedded by the student and the searched images by the teacher, so that an index "
          "made with the teacher can stay; only a student trained into the teacher’s own space (1q) can do this."),
    Score("cka", "CKA with the teacher", CKA, "CKA"),
    Score("cka_unbiased", "CKA with the teacher, unbiased", CKA, "CKA"),
    Score("confusion_worst_class", "1-NN of the worst class", CONFUSION, "Confusion"),
    Score("confusion_mean_class", "1-NN, mean over classes", CONFUSION, "Confusion"),
    Score("confusion_mutual_information", "Clusters and classes, mutual information", CONFUSION, "Confusion"),
    Score("confusion_adjusted_rand", "Clusters and classes, adjusted Rand", CONFUSION, "Confusion"),
    Score(r"few_labels_([\d.]+)", "{0} % of the labels", FEW, "Few labels"),
    Score(r"few_labels_([\d.]+)_top_(\d+)", "{0} % of the labels, top {1}", FEW, "Few labels"),
    Score(r"n_shot_nearest_neighbour_(\d+)", "{0}-shot, nearest image", SHOTS, "N-shot"),
    Score(r"n_shot_class_mean_(\d+)", "{0}-shot, nearest class mean", SHOTS, "N-shot"),
    Score("retrieval_map", "Retrieval, mAP", RETRIEVAL, "Retrieval"),
    Score(r"retrieval_map_(\d+)", "Retrieval, mAP of the first {0}", RETRIEVAL, "Retrieval"),
    Score(r"retrieval_recall_(\d+)", "Retrieval, recall at {0}", RETRIEVAL, "Retrieval"),
    Score(r"retrieval_precision_(\d+)", "Retrieval, precision at {0}", RETRIEVAL, "Retrieval"),
    Score("parameters", "Parameters", "numbers learnt in training."),
    Score("flops", "Multiply-adds", "for one image at the model’s input size."),
    Score("weights_bytes", "File size", "of the weights."),
    Score("images_per_second", "Images/s", "embedded in a second on the hardware named above the table."),
    Score("width", "Width", "numbers in one embedding."),
    Score("input_size", "Input size", "side of the square image that the model sees, in pixels."),
)  # fmt: skip
UNKNOWN = "a share between 0 and 1 from an evaluation of this name."


def heading(key: str) -> str:
    """Of a column or a row. Of several teachers a metric may be there for each: neighbour_overlap_10_teacher_2."""
    metric, teacher = _parted(key)
    said = _said(metric)[0]
    if teacher:
        start, comma, end = said.partition(", of ")  # Neighbours kept of teacher_2, of 10
        said = f"{start} of teacher_{teacher}{comma}{end}"
    return said + (", by class" if key.endswith(PER_CLASS) else "")


def meaning(key: str) -> str:
    """What a column shows."""
    metric, teacher = _parted(key)
    by_class = "class by class, the mean over the classes: " if key.endswith(PER_CLASS) else ""
    return by_class + (f"for teacher_{teacher} alone: " if teacher else "") + _said(metric)[1]


def meanings(keys: list[str]) -> dict[str, str]:
    """What rows show: their heading, or what several are called together -> meaning; each once."""
    found: dict[str, str] = {}
    for key in keys:
        metric, _ = _parted(key)
        family = next((score.family for score in SCORES if re.fullmatch(score.pattern, metric)), "")
        found.setdefault(family or heading(key), meaning(metric if family else key))
    return found


def _parted(key: str) -> tuple[str, str]:
    """Metric, and which of several teachers it is held to, "" for all."""
    metric, _, teacher = key.removesuffix(PER_CLASS).partition("_teacher_")
    return metric, teacher


def _said(metric: str) -> tuple[str, str]:
    for score in SCORES:
        if found := re.fullmatch(score.pattern, metric):
            return score.heading.format(*found.groups()), score.meaning.format(*found.groups())
    return metric.replace("_", " "), UNKNOWN
