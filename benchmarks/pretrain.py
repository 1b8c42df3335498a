"""Images a second of `compress-ssl pretrain` against a bare loop over the same model, loader and augmentations.

    python benchmarks/pretrain.py                          all four methods, digits at 32 pixels
    python benchmarks/pretrain.py --method moco_v2 --data cifar10/ --encoder compress/resnet18_small

The bare loop is written out here with lightly's own losses: no run folder, no log, no score, no checkpoint, no signal
handling, nothing that could be resumed. Both take turns, a training of `--steps` steps each, of which the second half
is timed, so that whatever else the machine does hits both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly.loss import DINOLoss, NTXentLoss, SwaVLoss
from torch import Tensor
from torch.nn import functional

from compress_ssl import datasets, optim, pretrain, pretraining
from compress_ssl.encoder import open_encoder
from compress_ssl.hardware import HardwareConfig, launch
from compress_ssl.learner import Learner, follow, slow_copy
from compress_ssl.loader import TrainLoader
from compress_ssl.optim import OptimizerConfig
from compress_ssl.training import TrainingConfig

OPTIMIZER = OptimizerConfig(name="adamw", learning_rate=1e-3)
HELD_OUT = 100  # images of ours, which are not trained on; the bare loop's steps are as many


def bare_loss(name: str, config: Any, learner: Learner, device: torch.device) -> Callable[[Any, int], Tensor]:
    """(views, images) -> loss, as a script around lightly would have it."""
    if name == "simclr":
        nt_xent = NTXentLoss(temperature=config.temperature)
        return lambda views, _: nt_xent(*learner(views.query).float().chunk(2))
    if name == "swav":
        swapped = SwaVLoss(config.temperature, config.iterations, config.epsilon)

        def swav(views: Any, count: int) -> Tensor:
            learner.head.normalise()
            scores = list(learner(views.query).scores.float().split(count))
            return swapped(scores[:2], scores[2:]).squeeze()

        return swav
    slow = slow_copy(learner)
    if name == "moco_v2":
        contrast = NTXentLoss(config.temperature, memory_bank_size=(config.bank_size, config.projection_width))
        contrast = contrast.to(device)

        def moco(views: Any, _: int) -> Tensor:
            follow(slow, learner, momentum=config.momentum)
            order = torch.randperm(len(views.key[0]))
            with torch.no_grad():
                keys = slow([views.key[0][order]])[order.argsort()]
            return contrast(learner(views.query).float(), functional.normalize(keys.float(), dim=1))

        return moco
    centred = DINOLoss(config.outputs, teacher_temp=config.key_temperature).to(device)

    def dino(views: Any, count: int) -> Tensor:
        follow(slow, learner, momentum=config.momentum)
        with torch.no_grad():
            wanted = slow(views.key).float()
        return centred(list(wanted.split(count)), list(learner(views.query).float().split(count)))

    return dino


def bare(name: str, options: argparse.Namespace, fabric: Any) -> float:
    """Images a second of the bare loop."""
    family, device = pretraining.find(name), fabric.device
    config = family.Config()
    images = datasets.open_splits(options.data).train
    encoder = open_encoder(options.encoder, weights="random", size=options.size)
    learner = family.make_learner(config, encoder, ranks=1).train().to(device).to(memory_format=torch.channels_last)
    colours = family.Method(config, learner, images=len(images), fabric=fabric)
    loss_of = bare_loss(name, config, learner, device)
    optimizer = optim.optimizer(learner.parameters(), OPTIMIZER)
    loader = TrainLoader(
        images, family.make_view(config, options.size), batch_size=options.batch_size, seed=0, workers=options.workers
    )
    start = 0.0
    for step, batch in enumerate(itertools.islice(loader.batches(), options.steps)):
        if step == options.steps // 2:
            start = now(device)
        views = colours.views(batch.to(device), torch.Generator().manual_seed(step))
        with fabric.autocast():
            loss = loss_of(views, len(batch.index))
        optimizer.zero_grad()
        loss.backward()
        if name == "dino":
            for parameter in learner.parameters():
                if parameter.grad is not None:
                    torch.nn.utils.clip_grad_norm_(parameter, 3.0)
        optimizer.step()
    return (options.steps - options.steps // 2) * options.batch_size / (now(device) - start)


def ours(name: str, options: argparse.Namespace) -> float:
    """Images a second of a training, as it logs them."""
    images = len(datasets.open_splits(options.data).train) - HELD_OUT
    with tempfile.TemporaryDirectory() as folder:
        pretrain.run(
            pretrain.Config(
                data=options.data,
                out=Path(folder) / "run",
                encoder=options.encoder,
                size=options.size,
                method=pretraining.find(name).Config(),
                training=TrainingConfig(
                    epochs=options.steps / (images // options.batch_size),
                    batch_size=options.batch_size,
                    validate_every_epochs=1e9,
                    save_every_minutes=1e9,
                    log_every_steps=options.steps // 2,
                ),
                optimizer=OPTIMIZER,
                hardware=HardwareConfig(workers=options.workers, compile="off"),
                held_out=HELD_OUT,
                gallery=HELD_OUT,
            )
        )
        lines = map(json.loads, (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines())
        found = [line["images_per_second"] for line in lines if line["kind"] == "train"]
    return float(found[1])


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{found or platform.processor()}, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", nargs="*", default=pretraining.names())
    parser.add_argument("--data", default="digits")
    parser.add_argument("--encoder", default="compress/resnet10_small_w32_s2")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=16, help="even; of which the second half is timed")
    parser.add_argument("--turns", type=int, default=5, help="trainings of each")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    if options.steps < 2 or options.steps % 2:
        parser.error(f"--steps expected an even number, got {options.steps}")
    fabric = launch(HardwareConfig(), seed=0)
    print(f"{options.encoder} at {options.size}, B = {options.batch_size}, {options.data}, {options.workers} workers")
    print(f"{processor(fabric.device)}, {fabric._precision.precision}, torch {torch.__version__}")
    print(f"{'':10} {'n':>3}  {'bare: median (min – max) images/s':36} {'ours':36} ours / bare")
    for name in options.method:
        rates: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(options.turns):
            rates["bare"].append(bare(name, options, fabric))
            rates["ours"].append(ours(name, options))
        told = [f"{statistics.median(found):8.1f} ({min(found):.1f} – {max(found):.1f})" for found in rates.values()]
        ratio = statistics.median(rates["ours"]) / statistics.median(rates["bare"])
        print(f"{name:10} {options.turns:3}  {told[0]:36} {told[1]:36} {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
