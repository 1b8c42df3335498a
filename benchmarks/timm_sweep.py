"""Every classification architecture of timm as a student: which can be trained, which cannot and why.

Each is built as `distill` builds a student, on as small an input as it takes; then: one row an image, finite, of the
width it says; a gradient for every parameter that learns; saved and loaded, the same bits. Prints a line for each that
fails, and counts. One whose parameters take more than --gigabytes is left out, and counted.

    python benchmarks/timm_sweep.py                      about 1 hour on one core
    python benchmarks/timm_sweep.py 'vit_*' --seconds 20
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

SIZES = (32, 64, 96, 128, 160, 192, 224)  # tried in this order; after them the published one


def main() -> None:
    from compress_ssl import encoder  # noqa: F401 (once, not in each process)
    from compress_ssl.backbones import from_timm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*", help="architectures, as the shell matches names")
    parser.add_argument("--seconds", type=float, default=90, help="for one architecture, at most")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of parameters, at most")
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth architecture")
    options = parser.parse_args()
    names = [name for name in from_timm.names() if fnmatch.fnmatch(name, options.pattern)][:: options.every]
    counts: Counter[str] = Counter()
    start = time.monotonic()
    for number, name in enumerate(names):
        verdict, told = tried(name, options.seconds, options.gigabytes)
        counts[verdict] += 1
        if verdict != "works":
            print(f"{name:<44} {verdict:<9} {told}", flush=True)
        if number % 100 == 99:
            print(f"-- {number + 1} of {len(names)}, {dict(counts)}, {time.monotonic() - start:.0f} s", flush=True)
    print(f"{len(names)} architectures: {dict(counts)}, in {time.monotonic() - start:.0f} s")


def tried(name: str, seconds: float, gigabytes: float) -> tuple[str, str]:
    """In a process of its own: what one architecture does to memory or never ends, ends with it."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(name, gigabytes, writer))
    process.start()
    writer.close()
    try:
        found = reader.recv() if reader.poll(seconds) else ("too slow", f"more than {seconds:g} s")
    except EOFError:
        found = ("fails", "its process died")
    process.kill()
    process.join()
    return found


def _report(name: str, gigabytes: float, writer) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    writer.send(examine(name, gigabytes))


def examine(name: str, gigabytes: float) -> tuple[str, str]:
    """Returns: `works`, `refused` (by one sentence of ours), `too large` or `fails`; and what there is to tell."""
    import torch

    from compress_ssl.backbones import from_timm
    from compress_ssl.encoder import load_encoder, open_encoder, parameter_count, save_encoder
    from compress_ssl.refusal import Refusal

    torch.set_num_threads(1)
    spec = f"timm/{name}"
    try:
        with torch.device("meta"):
            parameters = parameter_count(from_timm.build(name, weights="random"))
        if 4 * parameters > gigabytes * 1e9:
            return "too large", f"{parameters / 1e6:.0f} M parameters"
    except Exception:  # not every one can be built so; the real one, at a size of ours, says what is wrong
        pass
    encoder, refusals = None, []
    for size in (*SIZES, None):
        try:
            encoder = open_encoder(spec, weights="random", size=size)
            break
        except Refusal as refusal:
            refusals.append(str(refusal))
        except Exception as trouble:
            return "fails", f"at {size}: {type(trouble).__name__}: {(str(trouble).splitlines() or [''])[0]}"
    if encoder is None:
        return "refused", refusals[-1]
    try:
        return _works(encoder, save_encoder, load_encoder, torch)
    except Exception as trouble:
        told = (str(trouble).splitlines() or [""])[0]
        return "fails", f"at {encoder.preprocessing.size}: {type(trouble).__name__}: {told}"


def _works(encoder, save_encoder, load_encoder, torch) -> tuple[str, str]:
    size = encoder.preprocessing.size
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        rows = encoder(images)
    if rows.shape != (2, encoder.width) or not rows.isfinite().all():
        return "fails", f"at {size}: rows {tuple(rows.shape)} of width {encoder.width}, or not finite"
    encoder.train()
    (encoder(images) * torch.randn(2, encoder.width)).sum().backward()
    without = [
        name for name, parameter in encoder.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    encoder.zero_grad(set_to_none=True)
    encoder.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_encoder(encoder, Path(folder))
        if not torch.equal(load_encoder(Path(folder))(images), encoder(images)):
            return "fails", f"at {size}: other rows once saved and loaded"
    if without:
        return "fails", f"at {size}: no gradient for {len(without)} parameters ({', '.join(without[:3])})"
    return "works", ""


if __name__ == "__main__":
    main()
