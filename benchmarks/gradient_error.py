"""How far a bank in fewer bits moves the gradient, beside what another random bank of the same size does.

    compress-ssl embed --encoder TEACHER --data DATA --dtype float32 --out teacher_table
    compress-ssl embed --encoder STUDENT --data DATA --dtype float32 --out student_table
    python benchmarks/gradient_error.py teacher_table student_table

Embeddings of trained models; the truth is the naive computation in float64 over the same anchors. `wide` repeats it on
rows brought to 2048 and 512 by random rotations of zero-padded rows, where the 8-bit product of CPUs is used.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.quantised import quantise
from compress_ssl.similarity import naive, streamed
from compress_ssl.table import Table

KINDS = {"float32": lambda rows: rows, "bfloat16": Tensor.bfloat16, "int8": quantise}


def rotated(rows: Tensor, width: int, seed: int) -> Tensor:
    """(N, D) -> (N, width): the same cosines, entries spread over all columns."""
    basis = torch.linalg.qr(torch.randn(width, rows.shape[1], generator=torch.Generator().manual_seed(seed)))[0]
    return functional.normalize(rows @ basis.T)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("--bank-size", type=int, default=16_384)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.04)
    parser.add_argument("--times", type=int, default=5, help="banks and batches drawn")
    options = parser.parse_args()
    tables = [Table(path) for path in (options.teacher, options.student)]
    count = len(tables[0].ids("train"))
    teacher, student = (torch.from_numpy(table.embeddings("train").rows) for table in tables)
    temperatures = {"temperature": options.temperature, "target_temperature": options.temperature}
    for told, target, query in (
        (f"as they are ({teacher.shape[1]} / {student.shape[1]})", teacher, student),
        ("wide (2048 / 512)", rotated(teacher, 2048, 1), rotated(student, 512, 2)),
    ):
        errors: dict[str, list[float]] = {name: [] for name in (*KINDS, "another bank")}
        for seed in range(options.times):
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            batch, bank, other = order.split(
                [options.batch_size, options.bank_size, count - options.batch_size - options.bank_size]
            )
            other = other[: options.bank_size]
            leaf = query[batch].double().requires_grad_()
            exact = []
            for anchors in (bank, other):
                rows = leaf, query[anchors].double(), target[batch].double(), target[anchors].double()
                kl = naive.divergence(*rows, **temperatures).kl.mean()
                exact.append(torch.autograd.grad(kl, leaf)[0] * len(batch))
            for name, kind in KINDS.items():
                rows = query[batch], kind(query[bank]), target[batch], kind(target[bank])
                gradient = streamed.divergence(*rows, **temperatures).gradient
                errors[name].append(float((gradient - exact[0]).norm() / exact[0].norm()))
            errors["another bank"].append(float((exact[1] - exact[0]).norm() / exact[0].norm()))
        print(f"relative error of the gradient, {told}, B = {options.batch_size}, K = {options.bank_size}, "
              f"temperature {options.temperature}, n = {options.times}: median (min – max)")  # fmt: skip
        for name, found in errors.items():
            print(f"  {name:13}{statistics.median(found):.1e}  ({min(found):.1e} – {max(found):.1e})")


if __name__ == "__main__":
    main()
