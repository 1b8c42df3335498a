"""One step of the loop never makes the host wait for the device.

The device of these tests is torch's `meta`: tensors without values. Whatever would need a value on the host
(`.item()`, `bool()`, `nonzero()`, `.cpu()`, a mask as an index) cannot be had there and raises, as under CUDA's
`set_sync_debug_mode`.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from compress_ssl import colour, objectives, optim, teacher
from compress_ssl.distill import Step
from compress_ssl.encoder import open_encoder
from compress_ssl.loader import Batch
from compress_ssl.momentum import Momentum
from compress_ssl.objectives import compress
from compress_ssl.optim import OptimizerConfig
from compress_ssl.projector import ProjectorConfig, shape
from compress_ssl.student import Student
from compress_ssl.teacher import LiveTeacher
from compress_ssl.waits import Waits
from compress_ssl.weighted import Weighted

STUDENT = "compress/resnet10_small_w8"
META = torch.device("meta")


class Pictures:
    name, classes = "noise:train", ()
    ids = tuple("abcdefghijk")
    labels = np.full(11, -1)

    def __len__(self) -> int:
        return len(self.ids)


class Alone:
    """What a step asks of Fabric, for one process and float32."""

    world_size, is_global_zero = 1, True

    def __init__(self, device: torch.device):
        self.device = device

    def setup(self, *given: Any) -> tuple[Any, ...]:
        return given

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def autocast(self) -> Any:
        return nullcontext()

    def no_backward_sync(self, _: Any, enabled: bool) -> Any:
        del enabled
        return nullcontext()


class Copies(TorchDispatchMode):
    """Notes what is copied from the host to the device: from ordinary memory that waits too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.device.type != "cpu":
            hosts = [one for one in args if isinstance(one, Tensor) and one.device.type == "cpu" and one.ndim > 0]
            self.found += [f"{func}: {tuple(one.shape)}" for one in hosts]
        return out


def make_step(device: torch.device, objective: str, accumulate: int, fabric: Any = None) -> tuple[Step, LiveTeacher]:
    torch.manual_seed(0)
    live = LiveTeacher(
        open_encoder(STUDENT, weights="random", size=8), Pictures(), device=device, workers=0, check="later"  # type: ignore[arg-type]
    )  # fmt: skip
    encoder = open_encoder(STUDENT, weights="random", size=8).train()
    module = objectives.find(objective)
    made = module.Objective(
        module.Config(bank_size=7), width=encoder.width, target_width=live.width, images=11, device=device
    )
    made.temperature = 0.07  # a number, before the first step
    ends = shape(ProjectorConfig(), width=encoder.width, target_width=live.width, space=made.space)
    student = Student(encoder, ends.build()).train().to(device)
    whole = Weighted([made], [1.0], [(ends.widths[-1], live.width)])
    whole.trained.to(device)
    optimizer = optim.optimizer([*student.parameters(), *whole.trained.parameters()], OptimizerConfig())
    momentum, fabric = Momentum(student, made.momentum), fabric or Alone(device)
    step = Step(fabric, live, student, momentum, whole, optimizer, accumulate=accumulate)  # type: ignore[arg-type]
    return step, live


def batch(device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=generator)
    index = torch.tensor([3, 1, 9, 0, 4])
    return Batch(images.to(device), index.to(device), [], host_index=index)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding is done once, before the loop, and looks at values; this device has no precision of its own to leave."""
    monkeypatch.setattr(teacher, "folded", lambda encoder, _: encoder)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize(
    ("objective", "accumulate"),
    [("compress", 1), ("compress_1q", 1), ("compress_1q", 2), ("compress_2q", 1), ("compress_2q", 2)],
)
def test_no_part_of_a_step_waits_for_the_device(objective: str, accumulate: int) -> None:
    """The GPU would run dry in every step, while the host asks whether some row was zero."""
    step, live = make_step(META, objective, accumulate)
    waits = Waits(META)
    waits.start()
    for _ in range(3):  # an empty bank, one that fills, a full one
        given = batch(META)
        with Copies() as copies:
            loss = step(given, waits)
        assert copies.found == []
    assert loss.device == META
    assert len(live._rows._waiting) == 3 * accumulate, "the teacher's rows are still to be checked"


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_student_s_colours_change_without_waiting(accumulate: int) -> None:
    """As above, for who asks for `--student-colour`."""
    step, _ = make_step(META, "compress_1q", accumulate)
    change = colour.draw(5, colour.Config(blur=0.5), torch.Generator().manual_seed(0))
    step(batch(META), Waits(META), change)  # constants are copied once
    given = batch(META)
    with Copies() as copies:
        step(given, Waits(META), change)
    assert len(copies.found) == accumulate, "one copy of all numbers of a part"


@pytest.mark.parametrize("wait", [lambda x: bool(x.any()), lambda x: x.sum().item(), lambda x: x[x > 0], Tensor.cpu])
def test_the_device_of_these_tests_notices_who_waits(wait: Any) -> None:
    """If these passed, the claim above would be empty."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.ones(3, device=META))


def test_copies_from_the_host_are_noticed() -> None:
    """As above."""
    with Copies() as copies:
        torch.ones(3).to(META)
    assert len(copies.found) == 1


def test_colours_change_without_waiting() -> None:
    """Pretraining on a GPU would stop for each of six small tensors, twice a step."""
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8, device=META)
    drawn = colour.draw(6, colour.Config(blur=0.5), torch.Generator().manual_seed(0))
    colour.apply(images, drawn)  # constants are copied once
    with Copies() as copies:
        colour.apply(images, drawn)
    assert len(copies.found) == 1, "one copy of all numbers"


def test_under_bf16_the_default_standardises_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a variance that is a hundredth of a squared mean, seven bits leave nothing; after a week nobody knows why."""
    found, dtypes, call = [], set(), compress.Objective.__call__

    def beside_the_truth(self: compress.Objective, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
        loss = call(self, query, target, index)
        sides = copy.deepcopy(self.trained).double()(query.double()), target.double()
        mine, its = (
            (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5 / rows.shape[1]).sqrt() for rows in sides
        )
        found.append((float(loss.detach()), float((mine - its).square().mean().detach())))
        return loss

    monkeypatch.setattr(compress.Objective, "__call__", beside_the_truth)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    step, _ = make_step(torch.device("cpu"), "compress", 1, fabric)
    step.student.projector.register_forward_hook(lambda *given: dtypes.add(given[-1].dtype))
    step(batch(torch.device("cpu")), Waits(torch.device("cpu")))  # the bank is empty: nothing else is in the loss
    (loss, distance), *_ = found
    assert dtypes == {torch.bfloat16}, "or nothing would be claimed"
    assert loss == pytest.approx(4 * distance, rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("objective", ["compress", "compress_1q", "compress_2q"])
def test_cuda_itself_sees_no_wait(objective: str) -> None:
    """As the first claim, by the driver's own account."""
    device = torch.device("cuda")
    step, live = make_step(device, objective, 1)
    waits = Waits(device)
    given = batch(device)
    step(given, waits), step(given, waits)  # kernels are loaded and memory is taken
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        waits.start()
        for _ in range(3):
            step(given, waits)
            live.settle(wait=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    live.settle(wait=True)
    assert set(waits.read()) == {"teacher", "student", "momentum", "objective", "optimizer"}
