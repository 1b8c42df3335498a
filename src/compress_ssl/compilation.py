"""Whether torch.compile pays in this run: asked for, or measured before the first step, and said in the log.

Measured are the embeddings and the gradient of one batch of random pixels, as they are and compiled, with everything
put back afterwards: no step, no statistic and no random number of the training differs for it. What was chosen is part
of the checkpoint, so a resumed run computes as the run it continues: compiled sums are made in another order.

On a CPU `auto` leaves it off. One Zen 3 core, milliseconds an image at 224 pixels, medians of 5: ResNet-18 forward and
backward 183 as it is and 188 compiled, its slow copy 53 and 52, a ResNet-50 teacher 132, 126 with its batch norms
folded (which every run has), 109 compiled with frozen weights; after 45 s to 100 s of compiling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from compress_ssl.processes import largest, on_first
from compress_ssl.refusal import Refusal
from compress_ssl.training import Training

BACKEND = "inductor"
REPEATS = 5  # of what is timed, after one that warms up
WORTH_TRYING = 1200  # seconds a training must take for its first minute to be spent on this
WORTH_KEEPING = 0.95  # of the time as it is: within measuring noise a compiler is only a risk


def decide(
    asked: Literal["auto", "on", "off"],
    training: Training,
    modules: list[nn.Module],
    rehearsal: Callable[[], Callable[[], None]],
    *,
    console: Console,
) -> None:
    """Compile the modules in place, or leave them; every process must call it, before the first step.

    Args:
        rehearsal: makes a batch, and the function that computes the embeddings and the gradient of a step with it,
            through these modules. Called only where something is tried out; what it made is freed afterwards.
    Raises: Refusal if it is asked for and cannot be done.
    """
    fabric = training.fabric
    if asked == "on" and (reason := _compile(modules, rehearsal())):
        raise Refusal(f"--compile on expected what torch.compile needs, got {reason}: use --compile off")
    if asked != "auto":
        training.compiled = asked == "on"
    elif training.compiled:  # as the run that is continued
        switch(modules, compiled=True)
    elif training.compiled is None and fabric.device.type == "cuda":
        start = time.monotonic()
        told = on_first(fabric, lambda: _measured(training, modules, rehearsal()))
        kept = told is not None and told.startswith("on")
        training.compiled = largest(fabric, float(kept)) > 0
        switch(modules, compiled=training.compiled)
        training.spent += time.monotonic() - start  # a time budget pays for it
        if told is not None:
            console.print(f"compile: {told}", highlight=False)


def _measured(training: Training, modules: list[nn.Module], rehearse: Callable[[], None]) -> str:
    """`on` or `off`, and why."""
    device = training.fabric.device
    with _as_before(modules):
        plain = _seconds(rehearse, device)
    expected = training.budget or plain * (training.total_steps - training.step)
    if expected < WORTH_TRYING:
        return f"off, {expected / 60:.0f} min of training would not win back the time it takes"
    start = time.monotonic()
    reason = _compile(modules, rehearse)
    if reason:
        return f"off, {reason}"
    took = time.monotonic() - start
    with _as_before(modules):
        compiled = _seconds(rehearse, device)
    told = f"{1000 * plain:.0f} ms a batch as it is, {1000 * compiled:.0f} ms compiled (which took {took:.0f} s)"
    return f"{'on' if compiled <= WORTH_KEEPING * plain else 'off'}, {told}"


def _compile(modules: list[nn.Module], rehearse: Callable[[], None]) -> str | None:
    """Compile by running once; if that cannot be done, leave the modules as they were and say why."""
    switch(modules, compiled=True)
    try:
        with _as_before(modules):
            rehearse()
    except Exception as trouble:  # no compiler, no Triton, code that it cannot trace: all one to a reader
        switch(modules, compiled=False)
        return f"{type(trouble).__name__}: {(str(trouble).splitlines() or [''])[0]}"
    return None


def switch(modules: list[nn.Module], *, compiled: bool) -> None:
    """Compile the modules in place at their next call, or leave them as they are written."""
    for module in modules:
        if not compiled:
            module._compiled_call_impl = None
        elif module._compiled_call_impl is None:
            weights = list(module.parameters())
            frozen = not module.training and all(weight.device.type == "cpu" for weight in weights)
            # on a CPU: weights laid out for oneDNN once and for all, activations made in the convolution before them
            options = {"freezing": True} if frozen and BACKEND == "inductor" else None
            module.compile(dynamic=False, backend=BACKEND, options=options)


@contextmanager
def _as_before(modules: list[nn.Module]) -> Iterator[None]:
    """Statistics, gradients and generators are afterwards what they were."""
    statistics = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    gradients = [(weight, weight.grad) for module in modules for weight in module.parameters()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)
        for weight, gradient in gradients:
            weight.grad = gradient


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    found = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return median(found[1:])


def noise(*shape: int, device: torch.device) -> Tensor:
    """Random pixels to rehearse with."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
