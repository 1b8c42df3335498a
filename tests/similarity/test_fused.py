"""The two Triton kernels against float64: on a GPU where there is one, and in Triton's interpreter elsewhere.

TRITON_INTERPRET is read when Triton is imported, so the interpreter has a process of its own. Run as a program, this
file is one such process (see `elsewhere`).
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl.quantised import Int8Rows, quantise
from compress_ssl.similarity import fused
from compress_ssl.similarity.divergence import Divergence

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS: dict[str, Callable[[Tensor], Tensor | Int8Rows]] = {
    "float32": lambda rows: rows,
    "bfloat16": lambda rows: rows.bfloat16(),
    "int8": quantise,
}
WORST = {"float32": 2e-5, "bfloat16": 2e-2, "int8": 3e-2}  # relative error of a gradient


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture(scope="module")
def divergence() -> Iterator[Callable[..., Divergence]]:
    """fused.divergence, where it can run."""
    if DEVICE.type == "cuda":
        yield lambda *rows, **options: on(
            torch.device("cpu"), fused.divergence(*on(DEVICE, rows), **on(DEVICE, options))
        )
        return
    pytest.importorskip("triton", reason="no Triton, so there is nothing to interpret the kernels")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        with environment(TRITON_INTERPRET="1", OMP_NUM_THREADS="1"):
            process.submit(torch.set_num_threads, 1).result()  # starts the process, with these values
        yield lambda *rows, **options: process.submit(fused.divergence, *rows, **options).result()


def on(device: torch.device, values):
    """Tensors of a tuple or dictionary, moved."""
    if isinstance(values, Tensor):
        return values.to(device) if values.device != device else values
    if isinstance(values, dict):
        return {name: on(device, value) for name, value in values.items()}
    if isinstance(values, tuple):
        moved = [on(device, value) for value in values]
        return type(values)(*moved) if hasattr(values, "_fields") else tuple(moved)
    return values


def embeddings(count: int, width: int, target_width: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Unit rows of a student and of a teacher that agree on clusters, as trained ones do."""
    world = torch.Generator().manual_seed(1000 * width + target_width)
    centres, teacher, student = (
        torch.randn(*shape, generator=world) for shape in ((20, 12), (12, target_width), (12, width))
    )
    generator = torch.Generator().manual_seed(seed)
    content = centres[torch.randint(20, (count,), generator=generator)]
    content = content + 0.6 * torch.randn(count, 12, generator=generator)
    blurred = content + 0.5 * torch.randn(count, 12, generator=generator)
    return functional.normalize(blurred @ student), functional.normalize(content @ teacher)


def case(*, batch: int = 17, anchors: int = 203, width: int = 70, target_width: int = 51, seed: int = 0):
    """query, query_anchors, target, target_anchors."""
    query, target = embeddings(batch, width, target_width, seed=2 * seed)
    query_anchors, target_anchors = embeddings(anchors, width, target_width, seed=2 * seed + 1)
    return query, query_anchors, target, target_anchors


def truth(
    query: Tensor,
    query_anchors: Tensor,
    target: Tensor,
    target_anchors: Tensor,
    *,
    temperature: float = 0.04,
    target_temperature: float = 0.04,
    index: Tensor | None = None,
    anchor_index: Tensor | None = None,
    own: tuple[Tensor, Tensor] | None = None,
) -> Divergence:
    """The formulas a query at a time, in float64, differentiated by autograd."""
    rows = query.double().requires_grad_()
    cross_entropies, entropies = [], []
    for place in range(len(query)):
        kept = torch.ones(len(query_anchors), dtype=torch.bool)
        if index is not None and anchor_index is not None:
            kept = anchor_index != index[place]
        s, t = query_anchors[kept].double(), target_anchors[kept].double()
        if own is not None:
            s, t = torch.cat([s, own[0][place, None].double()]), torch.cat([t, own[1][place, None].double()])
        p = (t @ target[place].double() / target_temperature).softmax(0)
        log_q = (s @ rows[place] / temperature).log_softmax(0)
        cross_entropies.append(-(p * log_q).sum())
        entropies.append(-(p * p.log()).sum())
    (gradient,) = torch.autograd.grad(torch.stack(cross_entropies).sum(), rows)
    kl = torch.stack(cross_entropies).detach() - torch.stack(entropies)
    return Divergence(kl, torch.stack(entropies), gradient)


def error(ours: Tensor | None, wanted: Tensor | None) -> float:
    """Relative, of the whole tensor."""
    assert ours is not None
    assert wanted is not None
    assert ours.shape == wanted.shape
    assert ours.dtype == torch.float32
    return ((ours.double() - wanted).norm() / wanted.norm()).item()


def check(ours: Divergence, wanted: Divergence, kind: str) -> None:
    assert error(ours.gradient, wanted.gradient) < WORST[kind]
    assert error(ours.cross_entropy, wanted.cross_entropy) < WORST[kind]
    assert error(ours.entropy, wanted.entropy) < WORST[kind]
    # the loss is a difference of the two, much smaller than either
    assert error(ours.kl, wanted.kl) < WORST[kind]


SAME = {"temperature": 0.04, "target_temperature": 0.04}
OTHER = {"temperature": 0.07, "target_temperature": 0.03}


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradient_are_those_of_float64(divergence, kind):
    """A student would be pulled elsewhere than the method says, and nobody would see it in a falling loss."""
    query, query_anchors, target, target_anchors = rows = case()
    ours = divergence(query, KINDS[kind](query_anchors), target, KINDS[kind](target_anchors), **SAME)
    check(ours, truth(*rows), kind)


def test_bfloat16_is_closer_than_logits_in_bfloat16(divergence):
    """The kernel would cost accuracy that the obvious way on the same bank does not."""
    query, query_anchors, target, target_anchors = rows = case()
    wanted = truth(*rows).gradient
    ours = divergence(query, query_anchors.bfloat16(), target, target_anchors.bfloat16(), **SAME).gradient
    p = (target.bfloat16() @ target_anchors.bfloat16().T / 0.04).float().softmax(1)
    q = (query.bfloat16() @ query_anchors.bfloat16().T / 0.04).float().softmax(1)
    obvious = (q - p) @ query_anchors / 0.04
    assert error(ours, wanted) < error(obvious, wanted)


@pytest.mark.parametrize(("student", "teacher"), [("float32", "int8"), ("int8", "bfloat16"), ("bfloat16", "float32")])
def test_the_two_sides_may_be_of_different_kinds_and_temperatures(divergence, student, teacher):
    """A stored table of a teacher has its own dtype, a sharper teacher its own temperature: they would be mixed up."""
    query, query_anchors, target, target_anchors = rows = case(seed=1)
    ours = divergence(query, KINDS[student](query_anchors), target, KINDS[teacher](target_anchors), **OTHER)
    check(ours, truth(*rows, **OTHER), "int8" if "int8" in (student, teacher) else "bfloat16")


@pytest.mark.parametrize(("width", "target_width"), [(3, 2047), (64, 70), (2047, 3), (129, 8192)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_width_is_right(divergence, width, target_width, kind):
    """A width that fills no tile would read its neighbour's numbers."""
    rows = case(batch=5, anchors=37, width=width, target_width=target_width, seed=2)
    query, query_anchors, target, target_anchors = rows
    ours = divergence(query, KINDS[kind](query_anchors), target, KINDS[kind](target_anchors), **SAME)
    # three entries do not average their rounding out: there, what is judged is the arithmetic on rounded rows
    seen = [KINDS[kind](matrix).float() if width == 3 else matrix for matrix in rows]
    check(ours, truth(*seen), kind)


@pytest.mark.parametrize(("batch", "anchors"), [(1, 1), (1, 300), (33, 2), (67, 129)])
def test_every_number_of_queries_and_anchors_is_right(divergence, batch, anchors):
    """The last batch of an epoch, or a bank that has just begun to fill, would be wrong."""
    rows = case(batch=batch, anchors=anchors, width=19, target_width=11, seed=3)
    ours, wanted = divergence(*rows, **SAME), truth(*rows)
    torch.testing.assert_close(ours[:3], tuple(value.float() for value in wanted[:3]), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_anchors_of_a_querys_own_image_are_left_out(divergence, kind):
    """Each query would find itself in the bank: a student that has learnt nothing scores well."""
    query, query_anchors, target, target_anchors = rows = case(seed=4)
    samples = {
        "index": torch.arange(17) % 9 + 2**40,  # beyond 32 bits
        "anchor_index": torch.arange(203) % 11 + 2**40,
    }
    ours = divergence(query, KINDS[kind](query_anchors), target, KINDS[kind](target_anchors), **samples, **SAME)
    check(ours, truth(*rows, **samples), kind)
    assert error(ours.entropy, truth(*rows).entropy) > WORST["float32"], "the mask matters here"


def test_a_query_with_nothing_left_is_zero_and_others_are_not_disturbed(divergence):
    """0 / 0 in one row would turn the whole student into NaN."""
    rows = case(batch=3, anchors=7, width=5, target_width=6, seed=5)
    samples = {"index": torch.tensor([4, 8, 4]), "anchor_index": torch.full((7,), 8)}
    ours = divergence(*rows, **samples, **SAME)
    assert ours.gradient is not None
    assert all((value[1] == 0).all() for value in ours[:3])
    others = truth(*rows)
    assert error(ours.gradient[[0, 2]], others.gradient[[0, 2]]) < WORST["float32"]
    assert error(ours.entropy[[0, 2]], others.entropy[[0, 2]]) < WORST["float32"]


@pytest.mark.parametrize("sizes", [(4, 0), (0, 9), (0, 0)])
@pytest.mark.parametrize("gradient", [True, False])
def test_no_anchors_or_no_queries_give_zeros(divergence, sizes, gradient):
    """The first step compares with an empty bank."""
    rows = [torch.ones(count, width) for width in (5, 7) for count in sizes]
    ours = divergence(*rows, **SAME, gradient=gradient)
    assert torch.equal(ours.cross_entropy, torch.zeros(sizes[0]))
    assert torch.equal(ours.entropy, torch.zeros(sizes[0]))
    if gradient:
        assert torch.equal(ours.gradient, torch.zeros(sizes[0], 5))
    else:
        assert ours.gradient is None


def test_a_nan_is_not_hidden(divergence):
    """A student that has diverged would seem to have nothing to compare with: loss 0, for ever."""
    query, *others = case(batch=3, anchors=7, width=5, target_width=6, seed=6)
    query[1] = math.nan
    ours = divergence(query, *others, **SAME)
    assert ours.gradient is not None
    assert ours.cross_entropy.isnan().tolist() == [False, True, False]
    assert ours.gradient.isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("anchors", [0, 203])
@pytest.mark.parametrize("kind", KINDS)
def test_a_querys_own_anchor_is_one_more_that_only_it_sees(divergence, anchors, kind):
    """SEED without its own slot is another objective."""
    query, query_anchors, target, target_anchors = rows = case(anchors=anchors, seed=7)
    own = embeddings(len(query), 70, 51, seed=99)
    samples = {"index": torch.arange(17), "anchor_index": torch.arange(anchors) % 23}
    bank = KINDS[kind](query_anchors), KINDS[kind](target_anchors)
    ours = divergence(query, bank[0], target, bank[1], own=own, **samples, **OTHER)
    wanted = truth(*rows, own=own, **samples, **OTHER)
    if anchors:
        check(ours, wanted, kind)
    else:  # with one anchor there is nothing to learn
        torch.testing.assert_close(ours[:3], tuple(value.float() for value in wanted[:3]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_same_without_the_gradient(divergence, kind):
    """A validation loss would differ from the training loss of the same rows."""
    query, query_anchors, target, target_anchors = case(seed=8)
    bank = KINDS[kind](query_anchors), KINDS[kind](target_anchors)
    whole, values = (divergence(query, bank[0], target, bank[1], **OTHER, gradient=asked) for asked in (True, False))
    assert torch.equal(whole.cross_entropy, values.cross_entropy)
    assert torch.equal(whole.entropy, values.entropy)
    assert values.gradient is None


@pytest.mark.parametrize("kind", KINDS)
def test_slabs_of_anchors_give_what_all_at_once_give(divergence, kind):
    """A bank that outgrows the scratch would train another student."""
    query, query_anchors, target, target_anchors = rows = case(batch=5, anchors=300, seed=9)
    bank = KINDS[kind](query_anchors), KINDS[kind](target_anchors)
    samples = {"index": torch.arange(5), "anchor_index": torch.arange(300) % 13}
    whole, slabs = (
        divergence(query, bank[0], target, bank[1], **samples, **SAME, scratch_bytes=size) for size in (2**29, 1)
    )
    torch.testing.assert_close(slabs[:2], whole[:2], atol=1e-5, rtol=1e-5)
    assert error(slabs.gradient, whole.gradient.double()) < WORST[kind] / 2
    check(slabs, truth(*rows, **samples), kind)


def test_the_sides_may_share_one_bank(divergence):
    """1q compares the student in the teacher's own space: a second copy of the bank would be needed."""
    query, bank, target, _ = case(width=51, seed=10)
    for kind, convert in KINDS.items():
        anchors = convert(bank)
        check(divergence(query, anchors, target, anchors, **SAME), truth(query, bank, target, bank), kind)


def strided(rows: Tensor) -> Tensor:
    """Every third row of a larger matrix, between two columns that are not theirs."""
    larger = rows.new_full((3 * len(rows), rows.shape[1] + 2), math.nan)
    larger[::3, 1:-1] = rows
    return larger[::3, 1:-1]


def unaligned(rows: Tensor) -> Tensor:
    flat = rows.new_full((rows.numel() + 1,), math.nan)
    flat[1:] = rows.flatten()
    return flat[1:].view(rows.shape)


@pytest.mark.parametrize(
    "lay", [strided, unaligned, lambda rows: rows.T.contiguous().T], ids=["rows", "one", "columns"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_do_not_matter(divergence, lay, dtype):
    """A view of a table, or of a bank not yet full, would be read as if it lay in one piece."""
    rows = case(batch=7, anchors=43, seed=11)
    query, query_anchors, target, target_anchors = rows
    query, target = lay(query), lay(target)
    query_anchors, target_anchors = lay(query_anchors.to(dtype)), lay(target_anchors.to(dtype))
    ours = divergence(query, query_anchors, target, target_anchors, **SAME)
    check(ours, truth(*rows), str(dtype).removeprefix("torch."))


def reach_far(file: Path) -> None:
    """The same anchors side by side and 2^29 bytes apart; only the pages that they lie on are ever in memory."""
    query, query_anchors, target, target_anchors = on(DEVICE, case(batch=3, anchors=6, seed=12))
    near, target_bank = quantise(query_anchors), quantise(target_anchors)
    far = torch.empty(5 * 2**29 + 2**10, dtype=torch.int8, device=DEVICE).as_strided(near.values.shape, (2**29 + 64, 1))
    far.copy_(near.values)
    banks = (Int8Rows(far, near.scale), near)
    torch.save([tuple(fused.divergence(query, bank, target, target_bank, **SAME))[:3] for bank in banks], file)


def test_places_beyond_32_bits_are_reached(tmp_path):
    """In a bank of over 2^31 numbers, the far anchors would be read from anywhere."""
    pytest.importorskip("triton", reason="no Triton, so there is nothing to interpret the kernels")
    assert elsewhere("far", tmp_path / "found.pt").wait(timeout=120) == 0
    far, near = torch.load(tmp_path / "found.pt")
    assert all(torch.equal(a, b) for a, b in zip(far, near, strict=True))


def elsewhere(*arguments: str | Path) -> subprocess.Popen:
    """This file as a program, in a process where the kernels can run."""
    interpret = {"TRITON_INTERPRET": "1"} if DEVICE.type == "cpu" else {}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **interpret})


def test_the_same_call_gives_the_same_bits(divergence):
    """A seeded run could not be repeated."""
    rows = case(seed=13)
    first, second = (divergence(*rows, **SAME) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))


SPLITS = (61, 203)  # one process's anchors end here; the second split leaves the other process none


def grouped() -> tuple[tuple[Tensor, ...], dict]:
    rows = case(seed=14)
    own = embeddings(17, 70, 51, seed=98)
    return rows, {"index": torch.arange(17), "anchor_index": torch.arange(203) % 23, "own": own, **OTHER}


def take_part(rank: int, folder: Path) -> None:
    """One process of two: its shard of the anchors, all of the queries."""
    torch.set_num_threads(1)
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    (query, query_anchors, target, target_anchors), options = grouped()
    results = []
    for split in SPLITS:
        mine = slice(0, split) if rank == 0 else slice(split, None)
        shard = {**options, "anchor_index": options["anchor_index"][mine]}
        rows = on(DEVICE, (query, query_anchors[mine], target, target_anchors[mine]))
        # the second process takes its anchors in slabs, the first all at once
        ours = fused.divergence(*rows, **on(DEVICE, shard), group=group.group.WORLD, scratch_bytes=1 if rank else 2**29)
        results.append(tuple(on(torch.device("cpu"), ours))[:3])
    torch.save(results, folder / f"{rank}.pt")
    group.destroy_process_group()


def test_a_group_equals_one_process(divergence, tmp_path):
    """With the bank split over processes, each would learn from its own shard, or add a part twice."""
    processes = [elsewhere(str(rank), tmp_path) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    rows, options = grouped()
    wanted = divergence(*rows, **options)
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for first, second in zip(*by_rank, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "every process takes the same step"
        for ours, value in zip(first, wanted[:3], strict=True):
            assert error(ours, value.double()) < 1e-6


def refusal(rows=None, **options) -> str | None:
    return fused.refused(*(rows or case(batch=3, anchors=5)), **{**SAME, **options})


def test_what_it_cannot_do_it_refuses_with_the_reason():
    """The caller would take the fast path into overflow, wrong bits or a crash."""
    query, query_anchors, target, target_anchors = case(batch=3, anchors=5)
    assert "0.02 is below 0.025" in str(refusal(temperature=0.02))
    assert "0.01 is below 0.025" in str(refusal(target_temperature=0.01))
    assert "query is torch.float64" in str(refusal((query.double(), query_anchors, target, target_anchors)))
    assert "target is torch.bfloat16" in str(refusal((query, query_anchors, target.bfloat16(), target_anchors)))
    assert "target_anchors is torch.float16" in str(refusal((query, query_anchors, target, target_anchors.half())))
    plain = quantise(query_anchors).values
    assert "query_anchors is torch.int8" in str(refusal((query, plain, target, target_anchors))), "scales are missing"
    assert "cpu and meta" in str(refusal((query, query_anchors, target, target_anchors.to("meta"))))
    with pytest.raises(ValueError, match=r"0\.02 is below 0\.025: use the streamed path"):
        fused.divergence(query, query_anchors, target, target_anchors, temperature=0.02, target_temperature=1)


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused():
    """The interpreter takes a second for what the streamed path does in a millisecond."""
    assert refusal() == "the tensors lie on cpu, not on a CUDA device"


def test_without_triton_it_is_imported_and_refuses():
    """On Windows, macOS and small installations there is no Triton: nothing of the package could be imported."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch; from compress_ssl.similarity import fused; rows = [torch.ones(2, 3)] * 4\n"
        "print(fused.refused(*rows, temperature=1, target_temperature=1))"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "Triton cannot be imported" in done.stdout


def test_combine_reads_only_what_expdot_wrote():
    """Where an expdot tile ends before a combine tile does, the gradient would have bits of old memory in it."""
    names = {memory for memory, _, _ in fused.TILES}
    for memory in names:
        for written in KINDS:
            for read in KINDS:
                longer = fused.TILES[memory, "expdot", written].anchors
                assert longer % fused.TILES[memory, "combine", read].anchors == 0, (memory, written, read)


class Recorder:
    """Stands in for a kernel: keeps what it is launched with."""

    def __init__(self, launches: list, name: str) -> None:
        self.launches, self.name = launches, name

    def __getitem__(self, grid):
        return lambda *positional, **options: self.launches.append((self.name, positional, options))


def launches(kind: str, memory: str, monkeypatch) -> list[tuple[str, tuple, dict]]:
    """What divergence would launch at widths and counts of use: the student's expdot, which does all that the teacher's
    does and more, and combine.
    """
    found: list[tuple[str, tuple, dict]] = []
    recorders = SimpleNamespace(expdot=Recorder(found, "expdot"), combine=Recorder(found, "combine"))
    monkeypatch.setattr(fused, "_kernels", lambda: recorders)
    monkeypatch.setattr(fused, "_memory", lambda _: memory)
    monkeypatch.setattr(fused, "refused", lambda *_, **__: None)
    rows = [torch.ones(count, width) for width in (512, 2048) for count in (256, 1024)]
    banks = KINDS[kind](rows[1]), KINDS[kind](rows[3])
    samples = {"index": torch.arange(256), "anchor_index": torch.arange(1024)}
    fused.divergence(rows[0], banks[0], rows[2], banks[1], **SAME, **samples)
    return found[1:]


POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int8: "*i8", torch.int64: "*i64"}
LIMITS = {"large": (90, 227 * 2**10), "middle": (80, 163 * 2**10), "small": (86, 99 * 2**10)}


@pytest.mark.parametrize(
    ("memory", "kind"), [*(("large", kind) for kind in KINDS), ("middle", "bfloat16"), ("small", "int8")]
)
def test_the_kernels_assemble_for_a_gpu_that_is_not_here(memory, kind, monkeypatch, tmp_path, record_property):
    """Nobody without the GPU would notice that the kernels do not compile, do not fit or live on the stack."""
    triton = pytest.importorskip("triton", reason="no Triton to compile with")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from compress_ssl.similarity import kernels

    if kernels.INTERPRETED:
        pytest.skip("TRITON_INTERPRET is set: there is nothing to compile")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    if not all((tools / tool).exists() for tool in ("ptxas", "cuobjdump")):
        pytest.skip(f"no ptxas and cuobjdump in {tools}")
    capability, shared = LIMITS[memory]
    for name, positional, options in launches(kind, memory, monkeypatch):
        kernel = getattr(kernels, name)
        compiler = {option: options.pop(option) for option in ("num_warps", "num_stages")}
        arguments = dict(zip(kernel.arg_names, [*positional, *options.values()], strict=True))
        signature, constants, attributes = {}, {}, {}
        for place, (argument, value) in enumerate(arguments.items()):
            signature[argument] = {int: "i32", float: "fp32"}.get(type(value), "constexpr")
            if isinstance(value, Tensor):
                signature[argument] = POINTERS[value.dtype]
            if argument in options or value is None:
                signature[argument], constants[(place,)] = "constexpr", value
            elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=compiler)
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        command = [tools / "cuobjdump", "--dump-resource-usage", binary]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK"))  # type: ignore
        found = f"{registers} registers, {stack} bytes of stack, {compiled.metadata.shared} of shared memory"
        record_property(f"sm_{capability} {name} {kind} weighted={options.get('WEIGHTED')}", found)
        assert compiled.metadata.shared <= shared, found
        assert stack <= 512, found  # spilt registers, of each thread
        if kind != "float32":
            product = "wgmma" if capability == 90 else "mma.sync"
            assert product in compiled.asm["ptx"], "the tensor cores do the work"


if __name__ == "__main__":
    if sys.argv[1] == "far":
        reach_far(Path(sys.argv[2]))
    else:
        take_part(int(sys.argv[1]), Path(sys.argv[2]))
