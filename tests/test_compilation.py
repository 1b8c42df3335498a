"""torch.compile: chosen before the first step, by measurement, without a trace in the training."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from compress_ssl import compilation
from compress_ssl.refusal import Refusal


@dataclass
class Frame:
    """What `decide` asks of a training."""

    device: str = "cuda"
    total_steps: int = 1000
    compiled: bool | None = None
    budget: float | None = None
    step: int = 0
    spent: float = 0.0
    told: io.StringIO = field(default_factory=io.StringIO)

    @property
    def fabric(self) -> Any:
        device = SimpleNamespace(type=self.device)
        return SimpleNamespace(device=device, world_size=1, is_global_zero=True, broadcast=lambda value: value)


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())


IMAGES = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces the code, and leaves the kernels as they are."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")


def decide(asked: Any, frame: Frame, nets: list[nn.Module], work: Any) -> str:
    with Console(file=frame.told, width=300) as console:
        compilation.decide(asked, frame, nets, lambda: work, console=console)  # type: ignore[arg-type]
    return frame.told.getvalue()


def timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    found = iter(seconds)
    monkeypatch.setattr(compilation, "_seconds", lambda work, _: (work(), next(found))[1])


def is_compiled(net: nn.Module) -> bool:
    return net._compiled_call_impl is not None


@pytest.mark.parametrize(("compiled", "kept"), [(1.0, True), (1.95, False), (3.0, False)])
def test_the_quicker_one_is_kept_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, compiled: float, kept: bool
) -> None:
    """A day of training at the slower of two speeds, or at one that nobody knows of."""
    timed(monkeypatch, 2.0, compiled)
    frame, net = Frame(), Net()
    told = decide("auto", frame, [net], lambda: net(IMAGES))
    assert frame.compiled is kept
    assert is_compiled(net) is kept
    assert told.startswith(
        f"compile: {'on' if kept else 'off'}, 2000 ms a batch as it is, {1000 * compiled:.0f} ms comp"
    )
    assert frame.spent > 0, "a time budget pays for the measuring"


@pytest.mark.parametrize("frame", [Frame(total_steps=100), Frame(budget=1000.0), Frame(total_steps=1000, step=950)])
def test_a_short_training_is_not_held_up(monkeypatch: pytest.MonkeyPatch, frame: Frame) -> None:
    """A run of three minutes would compile for two."""
    timed(monkeypatch, 2.0)
    net = Net()
    told = decide("auto", frame, [net], lambda: net(IMAGES))
    assert "min of training would not win back" in told
    assert frame.compiled is False
    assert not is_compiled(net)


@pytest.mark.parametrize("kept", [True, False])
def test_a_resumed_run_computes_as_the_run_it_continues(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """Measured anew it might choose otherwise, and its losses would part from those of a run never killed."""
    timed(monkeypatch)
    frame, net = Frame(compiled=kept), Net()
    assert decide("auto", frame, [net], lambda: pytest.fail("measured again")) == ""
    assert (frame.compiled, is_compiled(net)) == (kept, kept)


@pytest.mark.parametrize("asked", ["auto", "off"])
def test_on_a_cpu_and_where_it_is_not_wanted_nothing_is_compiled(asked: str) -> None:
    """Minutes of compiling that do not pay there, or that somebody has refused."""
    frame, net = Frame(device="cpu"), Net()
    assert decide(asked, frame, [net], lambda: pytest.fail("measured")) == ""
    assert not is_compiled(net)


def test_what_cannot_be_compiled_is_said_and_only_refused_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine without a C++ compiler could not train at all."""
    timed(monkeypatch, 2.0, 2.0)
    net = Net()

    def work() -> None:
        if is_compiled(net):
            raise RuntimeError("no C++ compiler\nlong story")

    frame = Frame()
    assert "compile: off, RuntimeError: no C++ compiler\n" in decide("auto", frame, [net], work)
    assert not is_compiled(net)
    with pytest.raises(Refusal, match=r"--compile on expected .*no C\+\+ compiler: use --compile off"):
        decide("on", Frame(), [net], work)


def test_measuring_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running statistics, gradients or random numbers would differ from a run that did not measure."""
    timed(monkeypatch, 2.0, 1.0)
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def work() -> None:
        net(IMAGES).sum().backward()

    torch.manual_seed(7)
    decide("auto", Frame(), [net], work)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.grad is None for weight in net.parameters())
    assert net.state_dict().keys() == before.keys(), "a checkpoint has the same names, compiled or not"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_is_eager_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student would be another one, on the machines where compiling pays."""
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    eager, net, frozen = Net(), Net(), Net().eval().requires_grad_(False)
    for one in (eager, net):
        one[3].p = 0.0

    def loss(one: nn.Module) -> Tensor:
        with torch.no_grad():
            target = frozen(IMAGES)
        return (one(IMAGES) - 2 * target).square().mean()

    loss(eager).backward()
    assert decide("on", Frame(), [net, frozen], lambda: loss(net).backward()) == ""
    ours = loss(net)
    ours.backward()
    torch.testing.assert_close(ours, loss(eager))
    for mine, its in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-6)
