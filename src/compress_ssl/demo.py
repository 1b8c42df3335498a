"""Watch it work: digits, a self-supervised teacher, students by 1q and by 2q, two students without a teacher, one page.

Everything is real, only small: scikit-learn's 1797 handwritten digits of 8 × 8 pixels need no download.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from compress_ssl import distill, evaluate, objectives, pretrain, pretraining, report
from compress_ssl.colour import Config as Colour
from compress_ssl.hardware import HardwareConfig
from compress_ssl.optim import OptimizerConfig, ScheduleConfig
from compress_ssl.refusal import Refusal
from compress_ssl.training import TrainingConfig
from compress_ssl.transforms import TrainView

TEACHER = "compress/resnet10_small_w24"
STUDENT = "compress/resnet10_small_w8"
SIZE = 8  # pixels: the digits as they are


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a teacher on digits, compress it by 1q and by 2q, score everything, write a page."""

    out: Path = Path("demo")  # folder of the runs, results.json and report.html; must be new or empty
    seed: int = 0  # of everything


def run(config: Config) -> Path:
    """Do it all; returns the page."""
    out, start = config.out, time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refusal(
            f"--out expected an empty or new folder, got {out}, which holds something: name another with --out"
        )
    console = Console(stderr=True)

    def tell(what: str) -> None:
        console.rule(f"{time.monotonic() - start:.0f} s · {what}", align="left")

    simclr = pretraining.find("simclr").Config(
        temperature=0.2, view=TrainView(scale=(0.4, 1.0), flip=0.0), colour=Colour(hue=0, saturation=0, grey=0)
    )
    hardware = HardwareConfig(accelerator="cpu", workers=0)

    def learn_alone(encoder: str, name: str, epochs: float, batch_size: int) -> None:
        pretrain.run(
            pretrain.Config(
                data="digits",
                out=out / name,
                encoder=encoder,
                size=SIZE,
                method=simclr,
                training=TrainingConfig(
                    epochs=epochs,
                    batch_size=batch_size,
                    seed=config.seed,
                    validate_every_epochs=epochs / 4,
                    log_every_steps=5,
                ),
                optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3),
                hardware=hardware,
            )
        )

    def compress(objective: str, name: str, **options: float) -> None:
        distill.run(
            distill.Config(
                teacher=str(out / "teacher"),
                student=STUDENT,
                data="digits",
                out=out / name,
                objective=objectives.find(objective).Config(**options),
                view=TrainView(scale=(0.4, 1.0), flip=0.0),
                training=TrainingConfig(
                    epochs=30, batch_size=64, seed=config.seed, validate_every_epochs=5, log_every_steps=5
                ),
                optimizer=OptimizerConfig(name="sgd", learning_rate=0.2),
                schedule=ScheduleConfig(name="cosine", warmup=0.05),
                hardware=hardware,
            )
        )

    tell(f"a teacher, {TEACHER}, learns by SimCLR without labels")
    learn_alone(TEACHER, "teacher", epochs=24, batch_size=256)
    tell(f"it is compressed into {STUDENT} by 1q: in the teacher's own space")
    compress("compress_1q", "student_1q")
    tell("and by 2q: in a space of its own")
    compress("compress_2q", "student_2q", momentum=0.99)
    tell("the same student learns alone by SimCLR, for comparison")
    learn_alone(STUDENT, "student_alone", epochs=30, batch_size=64)  # as many steps and images as the compressed ones
    tell("all are scored on the 360 test digits")
    named = {name: str(out / name) for name in ("teacher", "student_1q", "student_2q", "student_alone")}
    named["student_random"] = f"{STUDENT}@random"
    models = tuple(f"{name}={spec}" for name, spec in named.items())
    evaluate.run(evaluate.Config(models=models, data="digits", out=out, size=SIZE, device="cpu", workers=0))
    runs = [str(out), *(str(out / name) for name in named if (out / name).is_dir())]
    page = report.run(report.Config(runs=tuple(runs), out=out / "report.html", title="CompRess on digits"))
    tell("done: open the page in a browser")
    return page
