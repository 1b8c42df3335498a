"""Models + labelled or unlabelled images -> metrics: embed once, run the chosen evaluations, one table.

The first model is the teacher: the others are compared with it. A model may be known by its stored rows alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table as RichTable

from compress_ssl import datasets, evaluations, layers, pictures, transfer
from compress_ssl.backbones import model_folder
from compress_ssl.datasets import ImageSet, Splits
from compress_ssl.device import open_device
from compress_ssl.embed import embed
from compress_ssl.embeddings import Embeddings
from compress_ssl.encoder import Encoder, costs, open_encoder, tell
from compress_ssl.evaluations import Embedded
from compress_ssl.idle_options import refuse_idle
from compress_ssl.loader import Skipped, refuse_skipped
from compress_ssl.metric_names import HEADLINE, SPREADS, heading, without_spreads
from compress_ssl.projector import Kept, choose_projector, load_projectors
from compress_ssl.refusal import Refusal
from compress_ssl.run_folder import RunFolder, environment
from compress_ssl.stored import Stored, needs_ids, of, open_stored, refuse_other_unusual
from compress_ssl.transforms import EvaluationView, RandomView, TrainView

# one field per file of evaluations/, holding its Config: a new file brings its own flags
Protocols: Any = make_dataclass(
    "Protocols",
    [
        (name, evaluations.find(name).Config, field(default_factory=evaluations.find(name).Config))
        for name in evaluations.names()
    ],
    frozen=True,
    kw_only=True,
)
Protocols.__doc__ = "How each evaluation is done."
Protocols.__module__ = __name__  # where other processes find it


@dataclass(frozen=True, kw_only=True)
class Config:
    """Score encoders on the same images, the first one being the teacher."""

    # SPEC or NAME=SPEC, the teacher first; a run folder, timm/NAME, …, a folder that `embed` wrote, a file of vectors
    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    data: str  # images: a folder, parquet, digits, torchvision/CIFAR10, …
    out: Path  # results.json and pictures.json are written here
    ids: Path | None = None  # text file with the image ids of every .npy of vectors among the models, one a line
    metrics: tuple[str, ...] = ()  # evaluations to run; none: all that fit but few_labels, linear_transfer (minutes)
    protocols: Protocols = field(default_factory=Protocols)
    on: tuple[str, ...] = ()  # other labelled data sets to score the same models on, with their own train and test
    on_metrics: tuple[str, ...] = ()  # evaluations to run on those; none: nearest_neighbour and linear_transfer
    layers: tuple[str, ...] = ()  # a linear probe on each: c1 … c5, f6, f7 of AlexNet, layer1 … layer4 of ResNets
    held_out: int = 1000  # images to test on where the data has no test split, at most a tenth; as distill keeps aside
    # of students of several teachers, whose projector goes with the first model: its name in the training, or teacher_2
    projector: str | None = None
    size: int | None = None  # pixels of the input, also of stored embeddings; None: each encoder's own
    batch_size: int = 256  # images embedded at once
    workers: int | None = None  # processes that read images; None: one a core but one, eight at most
    device: str = "auto"  # cpu, cuda, mps
    seed: int = 0  # of the random views of the paper's linear probe
    unusual: datasets.Unusual = "skip"  # CMYK, 16-bit, palette, transparent and animated files: skip or convert
    strict: bool = False  # an unusable image is an error


def run(config: Config) -> Path:
    """Evaluate, write results.json and pictures.json, print the table; returns the folder."""
    console = Console(stderr=True)
    named = _named(config.models)
    chosen = {name: evaluations.find(name) for name in config.metrics or evaluations.usual()}
    chosen_there = {name: evaluations.find(name) for name in config.on_metrics or transfer.METRICS}
    _refuse_idle(config, {*chosen, *(chosen_there if config.on else ()), *(["linear_probe"] if config.layers else ())})
    device = open_device(config.device)
    stored = open_all(named, config.ids)
    if "linear_probe" in chosen and config.protocols.linear_probe.protocol == "paper" and stored:
        spec = named[next(iter(stored))]
        raise Refusal("--protocols.linear-probe.protocol paper expected encoders, for it sees random views, got the "
                      f"stored rows {spec}: leave them out, or use the protocol stored")  # fmt: skip
    for rows in stored.values():
        refuse_other_unusual(rows, config.unusual)
    _refuse_other_size(config.size, stored, alone=len(stored) == len(named))
    if config.seed < 0:
        raise Refusal(f"--seed expected 0 or more, got {config.seed}: choose another")
    splits = open_data(config.data, config.held_out, unusual=config.unusual)
    assert splits.test is not None
    others = transfer.open_others(
        config.on, data=config.data, open_data=lambda name: open_data(name, config.held_out, unusual=config.unusual)
    )
    if others and "linear_probe" in chosen_there and config.protocols.linear_probe.protocol == "paper":
        raise Refusal("--on-metrics linear_probe expected --protocols.linear-probe.protocol stored, got paper, whose "
                      "random views are of --data alone: name linear_transfer instead")  # fmt: skip
    if config.layers:
        _refuse_layers(config, named, stored, splits)
    for name in ("config.yaml", "results.json"):
        if (config.out / name).exists():
            raise Refusal(f"--out expected a folder without results, got {config.out}, which holds {name} of another "
                          "run: name another")  # fmt: skip
    kept = {
        name: from_stored(rows, splits, strict=config.strict) for name, rows in stored.items()
    }  # refused before hours, if at all
    elsewhere = {
        name: {
            other: transfer.stored_rows(
                rows, its, other, lambda rows, its: from_stored(rows, its, strict=config.strict)
            )
            for other, its in others.items()
        }
        for name, rows in stored.items()
    }
    projectors = _projectors(config.projector, named, console)
    config.out.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(config.out)

    def on_skip(skipped: Skipped) -> None:
        if config.strict:
            refuse_skipped(skipped)
        folder.skip(*skipped)

    def embed_split(encode: Callable, images: ImageSet, view: Any, told: str, epoch: int = 0) -> Embeddings:
        return embed(
            encode,
            images,
            view=view,
            device=device,
            batch_size=config.batch_size,
            workers=config.workers,
            on_skip=on_skip,
            console=console,
            told=told,
            epoch=epoch,
            seed=config.seed,
        )

    train: dict[str, Embeddings] = {}
    test: dict[str, Embeddings] = {}
    projected: dict[str, Embeddings] = {}
    augmented: dict[str, Callable[[int], Embeddings]] = {}
    about: dict[str, dict[str, Any]] = {}
    probed: dict[str, dict[str, dict[str, float]]] = {}
    where = "cpu" if device.type == "mps" else str(device)  # the search needs float64, which Apple's devices lack
    for name, spec in named.items():
        if name in kept:
            train[name], test[name] = kept[name]
            about[name] = {"spec": spec, "width": stored[name].width}
            continue
        encoder = open_encoder(spec, weights="pretrained", size=config.size)
        tell(encoder)
        encoder = encoder.to(device).to(memory_format=torch.channels_last)
        view = EvaluationView(encoder.preprocessing)
        if config.layers:
            train[name], test[name], probed[name] = layers.probe_layers(
                encoder,
                config.layers,
                splits,
                embed=partial(_embed_told, embed_split, view, name),
                folder=config.out,
                probe=config.protocols.linear_probe,
                device=where,
            )
        else:
            train[name] = embed_split(encoder, splits.train, view, f"{name}, train")
            test[name] = embed_split(encoder, splits.test, view, f"{name}, test")
        augmented[name] = _augmented(encoder, splits.train, embed_split)
        elsewhere[name] = {}
        for other, its in others.items():
            assert its.test is not None
            elsewhere[name][other] = (
                embed_split(encoder, its.train, view, f"{name}, {other}, train"),
                embed_split(encoder, its.test, view, f"{name}, {other}, test"),
            )
        if name in projectors:
            both = torch.nn.Sequential(encoder, projectors[name].module.to(device))
            projected[name] = embed_split(both, splits.test, view, f"{name}, projected")
        about[name] = {"spec": spec, **describe(encoder, device)}
        if config.layers:
            about[name]["layers"] = probed[name]
    classes = splits.train.classes
    models = side_by_side(train, test, projected=projected, augmented=augmented, device=where, classes=classes)
    first = next(iter(models.values()))
    scored = len(first.train.ids) + len(first.test.ids)
    lost = max(len(train[name].ids) + len(test[name].ids) for name in named) - scored
    if lost:
        console.print(f"images left out, for one of the models has no row of them: {lost}", highlight=False)
    scores = {name: score(embedded, chosen, config.protocols) for name, embedded in models.items()}
    for name, embedded in models.items():
        about[name] |= counted(embedded, chosen, config.protocols, whole=config.metrics)
    transferred = {}
    for other in others:
        rows_there = {name: elsewhere[name][other] for name in named}
        classes = others[other].train.classes
        transferred[other] = _score_elsewhere(
            rows_there, chosen_there, config.protocols, device=where, classes=classes, whole=config.on_metrics
        )
    more = {"transfer": transferred} if transferred else {}
    write_results(folder, data=config.data, models=models, scores=scores, about=about, splits=splits, more=more)
    console.print(result_table(scores, about, asked=config.metrics, models=models))
    if probed:
        console.print(layers.layers_table(probed))
    if transferred:
        console.print(transfer.transfer_tables(transferred))
    if folder.skipped():
        console.print(folder.skipped_told(), markup=False)
    return config.out


def open_data(name: str, held_out: int, *, unusual: datasets.Unusual) -> Splits:
    """Both splits; where the data has no test split, the images that trainings hold out become one."""
    splits = datasets.open_splits(name, unusual=unusual)
    if splits.test is not None:
        return splits
    if held_out < 1:
        raise Refusal(f"--held-out expected at least 1, got {held_out}: raise it")
    if len(splits.train) < 4:
        raise Refusal(f"expected at least 4 images in {splits.train.name} to compare with each other, "
                      f"got {len(splits.train)}: add images")  # fmt: skip
    return Splits(*datasets.set_aside(splits.train, at_most=held_out))


def open_all(named: dict[str, str], ids: Path | None) -> dict[str, Stored]:
    """Those models that are stored rows."""
    if ids is not None and not any(map(needs_ids, named.values())):
        raise Refusal(f"--ids expected vectors in a .npy among the models, got {ids} and none: leave --ids out")
    opened = {name: open_stored(spec, ids=ids if needs_ids(spec) else None) for name, spec in named.items()}
    return {name: stored for name, stored in opened.items() if stored is not None}


def _refuse_idle(config: Config, done: set[str]) -> None:
    """Refuse options that nothing would read: of evaluations that are not among those done, of the probe's other
    protocol, and of other data where there is none."""
    if not config.on:
        refuse_idle(config, ["on_metrics"], expected="--on OTHER_DATA", without="without",
                    instead={"on_metrics": "name the data there, or write --metrics"})  # fmt: skip
    for name in [name for name in evaluations.names() if name not in done]:
        advice = dict.fromkeys([name], f"name {name} there, or leave the option out")
        refuse_idle(config.protocols, [name], prefix="protocols.", expected=f"{name} among --metrics",
                    without="without it", instead=advice)  # fmt: skip
    probe = config.protocols.linear_probe
    other = "paper" if probe.protocol == "stored" else "stored"
    refuse_idle(probe, probe.ONLY[other], prefix="protocols.linear_probe.",
                expected=f"--protocols.linear-probe.protocol {other}", without=f"with {probe.protocol}")  # fmt: skip


def _refuse_layers(config: Config, named: dict[str, str], stored: dict[str, Stored], splits: Splits) -> None:
    """Refuse layers that a model does not have, before hours of embedding; every encoder is opened for a look."""
    if stored:
        raise Refusal(f"--layers expected encoders, got the stored rows {named[next(iter(stored))]}, which have no "
                      "layers: leave them out")  # fmt: skip
    if config.protocols.linear_probe.protocol == "paper":
        raise Refusal("--layers expected --protocols.linear-probe.protocol stored, got paper, which would pass over "
                      "the images once an epoch: leave it out")  # fmt: skip
    for images in (splits.train, splits.test):
        if images is not None and not (images.labels >= 0).any():
            raise Refusal(f"--layers expected labelled images, got none with a label in {images.name}: leave --layers "
                          "out")  # fmt: skip
    for spec in named.values():
        layers.refuse_unknown_layers(open_encoder(spec, weights="pretrained", size=config.size), config.layers)


def _embed_told(embed_split: Callable, view: Any, name: str, encode: Callable, images: ImageSet, split: str) -> Any:
    return embed_split(encode, images, view, f"{name}, {split}")


def _refuse_other_size(size: int | None, stored: dict[str, Stored], *, alone: bool) -> None:
    """Refuse a --size that stored rows were not made with, and one that has no encoder to go to (`alone`)."""
    if size is None:
        return
    for rows in stored.values():
        made = None if rows.preprocessing is None else rows.preprocessing.size
        if made not in (None, size):
            raise Refusal(f"--size expected the size that the stored rows of {rows.path} were made with, got {size}, "
                          f"where they were made at {made}: leave it out, or embed with --size {size}")  # fmt: skip
    if alone and all(rows.preprocessing is None for rows in stored.values()):
        raise Refusal(f"--size expected an encoder among the models, got {size} for files of vectors alone, which are "
                      "as they are: leave it out")  # fmt: skip


def from_stored(stored: Stored, splits: Splits, *, strict: bool = False) -> tuple[Embeddings, Embeddings]:
    """Rows of train and test.

    Raises: Refusal if an image has none, or one row would be that of two images; with `strict`, if one could not be
        used when the rows were made.
    """
    assert splits.test is not None
    twice = set(splits.train.ids) & set(splits.test.ids) if len(stored.splits()) == 1 else set()
    if twice:
        raise Refusal(f"expected ids that tell the images of {splits.train.name} from those of {splits.test.name}, got "
                      f"{min(twice)} in both, and one row for it in {stored.path}: name the folder of one split as "
                      "--data, or store both by `compress-ssl embed`")  # fmt: skip
    return of(stored, splits.train, strict=strict), of(stored, splits.test, strict=strict)


def side_by_side(
    train: dict[str, Embeddings],
    test: dict[str, Embeddings],
    *,
    projected: dict[str, Embeddings] | None = None,
    augmented: dict[str, Callable[[int], Embeddings]] | None = None,
    device: str = "cpu",
    classes: tuple[str, ...] = (),
) -> dict[str, Embedded]:
    """Every model beside the first, its teacher, on the images that all of them have rows of."""
    train, test = shared(train), shared(test)
    models: dict[str, Embedded] = {}
    teacher: Embedded | None = None
    for name in train:
        itself = Embedded(train=train[name], test=test[name], device=device, classes=classes)
        into_teachers = None
        if projected and name in projected:
            into_teachers = shared({"own": test[name], "projected": projected[name]})["projected"]
        models[name] = replace(
            itself, teacher=teacher or itself, projected=into_teachers, augmented=(augmented or {}).get(name)
        )
        teacher = teacher or models[name]
    return models


def shared(rows: dict[str, Embeddings]) -> dict[str, Embeddings]:
    """The images that all of them have: vectors from elsewhere may be of pictures that we do not read."""
    first = next(iter(rows.values()))
    if all(one.ids == first.ids for one in rows.values()):
        return rows
    common = set.intersection(*(set(one.ids) for one in rows.values()))
    kept = {}
    for name, one in rows.items():
        places = [place for place, id in enumerate(one.ids) if id in common]
        ids = tuple(one.ids[place] for place in places)
        kept[name] = Embeddings(rows=one.rows[places], labels=one.labels[places], ids=ids)
    return kept


def describe(encoder: Encoder, device: torch.device | None) -> dict[str, Any]:
    """Size and speed of an encoder, as results.json keeps them; without what nobody can say of it.

    Args:
        device: where the encoder is, and its speed is measured; None: it is not measured.
    """
    sizes = costs(encoder)
    known = {"parameters": sizes["parameters"], "flops": sizes["multiply_adds"]}
    if sizes["parameters"] is not None:
        known["weights_bytes"] = 4 * sizes["parameters"]
    return {
        **{name: value for name, value in known.items() if value is not None},
        "width": encoder.width,
        "input_size": encoder.preprocessing.size,
        **({} if device is None else {"images_per_second": round(images_per_second(encoder, device), 1)}),
    }


@torch.no_grad()
def images_per_second(encoder: Encoder, device: torch.device, *, batch_size: int = 64, repeats: int = 5) -> float:
    """Median speed of the forward pass on batches that are already on the device, after one warm-up."""
    size = encoder.preprocessing.size
    images = torch.zeros(batch_size, 3, size, size, dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    encoder.eval()
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        encoder(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return batch_size / float(np.median(seconds[1:]))


def score(embedded: Embedded, chosen: dict[str, Any], protocols: Any) -> dict[str, dict[str, Any]]:
    """Metrics of one model, and why the missing ones are missing."""
    metrics: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, evaluation in chosen.items():
        why = evaluation.unfit(embedded)
        if why:
            missing[name] = why
        else:
            metrics |= evaluation.evaluate(embedded, getattr(protocols, name, None) or evaluation.Config())
    return {"metrics": metrics, "missing": missing}


def counted(
    embedded: Embedded, chosen: dict[str, Any], protocols: Any, *, whole: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The tables of one model as results.json keeps them; those of more than SIDE rows or columns only of the
    evaluations in `whole`, for a thousand classes make a million numbers.

    Returns: {"tables": {name: {"rows": …, "columns": …, "counts": …}}}, {} where there is none.
    """
    found: dict[str, Any] = {}
    for name, evaluation in chosen.items():
        if hasattr(evaluation, "tables") and not evaluation.unfit(embedded):
            tables = evaluation.tables(embedded, getattr(protocols, name, None) or evaluation.Config())
            for title, table in tables.items():
                if name in whole or max(len(table["rows"]), len(table["columns"])) <= SIDE:
                    found[title] = table
    return {"tables": found} if found else {}


def _score_elsewhere(
    rows: dict[str, transfer.Rows],
    chosen: dict[str, Any],
    protocols: Any,
    *,
    device: str,
    classes: tuple[str, ...],
    whole: tuple[str, ...],
) -> dict[str, Any]:
    """What results.json holds of one data set of `--on`."""
    train, test = ({name: both[split] for name, both in rows.items()} for split in (0, 1))
    models = side_by_side(train, test, device=device, classes=classes)
    protocols = transfer.by_class_too(protocols)
    return {
        "images": image_counts(models),
        "models": {
            name: score(embedded, chosen, protocols) | counted(embedded, chosen, protocols, whole=whole)
            for name, embedded in models.items()
        },
    }


def image_counts(models: dict[str, Embedded]) -> dict[str, int]:
    """Images of both splits that all models have rows of; where some but not all have a label, also how many do."""
    first = next(iter(models.values()))
    splits = {"train": first.train, "test": first.test}
    labelled = {f"{name}_labelled": int((split.labels >= 0).sum()) for name, split in splits.items()}
    counts = {name: len(split.ids) for name, split in splits.items()}
    partly = first.labelled and sum(labelled.values()) < sum(counts.values())
    return counts | (labelled if partly else {})


def write_results(
    folder: RunFolder,
    *,
    data: str,
    models: dict[str, Embedded],
    scores: dict[str, dict[str, Any]],
    about: dict[str, dict[str, Any]],
    splits: Splits,
    more: dict[str, Any] | None = None,
) -> None:
    """results.json and pictures.json; `more` is what else belongs into results.json."""
    assert splits.test is not None
    here = environment()
    folder.write_json(
        "results.json",
        {
            "data": data,
            "images": image_counts(models),
            "models": {name: {**scores[name], **about[name]} for name in models},
            **(more or {}),
            "hardware": here["hardware"],
            "versions": here["versions"],
            "command": here["command_line"],
        },
    )
    folder.write_json("pictures.json", pictures.choose(models, splits.train, splits.test))


SIDE = 20  # rows and columns of a table up to which results.json keeps it unasked
MAIN = (*HEADLINE, "neighbour_overlap_10", "asymmetric_nearest_neighbour")  # scores that are shown unasked
WIDTH = 80  # letters of a terminal; where models and scores side by side need more, each score has a line of its own


def result_table(
    scores: dict[str, dict[str, Any]],
    about: dict[str, dict[str, Any]],
    *,
    asked: tuple[str, ...] = (),
    models: dict[str, Embedded] | None = None,
) -> RichTable:
    """The table that a terminal shows: the main scores, and those of the evaluations in `asked` that have none such;
    below it, on how many images of `models` they rest."""
    written = dict.fromkeys(metric for one in scores.values() for metric in one["metrics"])
    found = without_spreads(written)
    shown = [metric for metric in found if _is_shown(metric, found, asked)]
    columns = [metric for metric in MAIN if metric in shown] + [metric for metric in shown if metric not in MAIN]
    lines = [[name, *(_told(one["metrics"], metric) for metric in columns),
              *(_rounded(about[name][key]) if key in about[name] else "–" for key in ("parameters", "flops"))]
             for name, one in scores.items()]  # fmt: skip
    whole = [["model", *map(_heading, columns), "params", "MACs"], *lines]
    upright = 1 + sum(3 + max(len(line[place]) for line in _broken(whole)) for place in range(len(whole[0]))) > WIDTH
    if upright:
        whole = [list(line) for line in zip(*whole, strict=True)]
    table = RichTable(header_style="bold")
    for number, told in enumerate(whole[0]):
        table.add_column(told, justify="right" if number else "left", no_wrap=not upright and " " not in told,
                         overflow="fold")  # fmt: skip
    captions = [transfer.images_told(image_counts(models))] if models else []
    weights = {name: told["weight"] for name, told in about.items() if "weight" in told}
    if weights:
        told = ", ".join(f"{name} {100 * weight:.1f} %" for name, weight in weights.items())
        captions.append(f"kept@10: mean over the teachers, by their weights: {told}; kept 1, 2, …: of each one's")
    if len(found) > len(shown):
        captions.append(f"{len(found) - len(shown)} more scores of each model are in results.json")
    table.caption = "\n".join(captions) or None
    for line in whole[1:]:
        table.add_row(*line)
    return table


def _heading(metric: str) -> str:
    """Of a score; of several teachers, neighbour_overlap_10_teacher_2, which teacher."""
    name, _, teacher = metric.partition("_teacher_")
    return f"{heading(name).removesuffix('@10')} {teacher}" if teacher else heading(name)


def _broken(whole: list[list[str]]) -> list[list[str]]:
    """A table's lines with the longest word of each heading in its place, where a terminal breaks it."""
    return [[max(words.split(), key=len) for words in whole[0]], *whole[1:]]


def _is_shown(metric: str, found: list[str], asked: tuple[str, ...]) -> bool:
    """Whether a score is one of the main ones, of somebody's own evaluation, or of one that has no main one found."""
    owner = max((name for name in evaluations.names() if f"{metric}_".startswith(f"{name}_")), key=len, default=None)
    if metric.partition("_teacher_")[0] in MAIN or owner is None:
        return True
    main = [name for name in MAIN if name.startswith(owner)]
    return not set(main).intersection(found) if main else owner in asked


def _told(metrics: dict[str, float], metric: str) -> str:
    """A score in points, with how much it varies over repeats where that is known."""
    if metric not in metrics:
        return "–"
    spread = next((metrics[metric + end] for end in SPREADS if metric + end in metrics), None)
    return f"{100 * metrics[metric]:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def _named(models: tuple[str, ...]) -> dict[str, str]:
    if not models:
        raise Refusal("expected at least one model to evaluate, got none: name the teacher first, then the students")
    named: dict[str, str] = {}
    for given in models:
        name, equals, spec = given.partition("=")
        if not equals or "/" in name:
            name, spec = Path(given).name or given, given
        if name in named:
            name = given
        if name in named:
            raise Refusal(f"expected every model once, got {given} twice: name them apart with NAME=SPEC")
        named[name] = spec
    return named


def _projectors(asked: str | None, named: dict[str, str], console: Console) -> dict[str, Kept]:
    """Of each student that has one, the projector into the space of the first model.

    Raises: Refusal if one is asked for and no student has any.
    """
    found = {}
    for name, spec in named.items():
        home = model_folder(Path(spec))
        projector = _into_first(load_projectors(home) if home else [], asked, named, name, console)
        if projector is not None:
            found[name] = projector
    if asked is not None and not found:
        raise Refusal(f"--projector expected a student with a projector into its teacher's space (trained by "
                      f"compress, compress_1q, regression …) after the first model, got {asked} and none: leave it "
                      "out")  # fmt: skip
    return found


def _into_first(
    kept: list[Kept], asked: str | None, named: dict[str, str], student: str, console: Console
) -> Kept | None:
    """The student's projector into the space of the first model: the one that was asked for, the only one, or the one
    of a teacher of that name. None where there is none, or which one it is cannot be told, and that is said."""
    into = [one for one in kept if one.about.space == "teacher"]
    first, spec = next(iter(named.items()))
    if student == first or not into:
        return None
    if asked is None and len(into) == 1:
        return into[0]
    if asked is not None:
        return choose_projector(into, asked, option="--projector", student=student)
    known = {str(Path(one.about.teacher).resolve()): one for one in into}
    found = known.get(str(Path(spec).resolve())) or {one.name: one for one in into}.get(first)
    if found is None:
        told = ", ".join(f"{one.name} ({one.about.teacher})" for one in into)
        console.print(f"{student} is not asked to search among rows of {first}: --projector says which of its teachers "
                      f"that is, {told}", highlight=False, markup=False)  # fmt: skip
    return found


def _augmented(encoder: Encoder, images: ImageSet, embed_split: Callable) -> Callable[[int], Embeddings]:
    view = RandomView(TrainView(), encoder.preprocessing.size)  # as in training: the paper's probe
    return lambda epoch: embed_split(encoder, images, view, f"linear probe, epoch {epoch + 1}", epoch)


def _rounded(count: int) -> str:
    """Three digits and a unit: 11.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
