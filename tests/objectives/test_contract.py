"""What every file in objectives/ promises. A file enters by existing."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress_ssl import bank, checkpoint, objectives
from compress_ssl.refusal import Refusal
from compress_ssl.similarity import streamed
from compress_ssl.weighted import Weighted

pytestmark = pytest.mark.filterwarnings("error")
IMAGES, WIDTH, TARGET_WIDTH = 11, 5, 9


@pytest.fixture(params=objectives.names())
def module(request: pytest.FixtureRequest) -> ModuleType:
    return objectives.find(request.param)


def make(module: ModuleType, *, seed: int = 0, images: int = IMAGES, device: str = "cpu", **options: Any) -> Any:
    config = module.Config(**options)
    width = TARGET_WIDTH if objectives.space_of(config) == "teacher" else WIDTH
    objective = module.Objective(
        config, width=width, target_width=TARGET_WIDTH, images=images, device=device, seed=seed
    )
    if objective.temperature == "auto":
        objective.temperature = 0.07  # before the first step it is a number
    if getattr(objective, "tokens", False):
        objective.token_side = 2
    if getattr(objective, "fits_targets", False):
        rows = torch.randn(images, TARGET_WIDTH, generator=torch.Generator().manual_seed(77))
        objective.fit(functional.normalize(rows), torch.arange(images))
    return objective


def batch(objective: Any, unit: Any, number: int, *, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """query, target, index of one step; the images differ from step to step."""
    query = unit(count, TARGET_WIDTH if objective.space == "teacher" else WIDTH, seed=2 * number)
    target = unit(count, TARGET_WIDTH, seed=2 * number + 1)
    if getattr(objective, "tokens", False):
        query, target = (
            torch.cat([rows, unit(count * 4, width, seed=3 * number + width).reshape(count, -1)], dim=1)
            for rows, width in ((query, 3), (target, 5))
        )
    return query, target, (torch.arange(count) + count * number) % IMAGES


def as_distill_has_it(objective: Any) -> Weighted:
    """What keeps the weights of an objective's own heads for it."""
    return Weighted([objective], [1.0], [(WIDTH, TARGET_WIDTH)])


def loss_of(objective: Any, query: Tensor, target: Tensor, index: Tensor) -> Tensor:
    """The objective's call, with a key where it reads one."""
    key = [query.roll(1, dims=1)] if getattr(objective, "reads_key", False) else []
    return objective(query, target, index, *key)


def warm(objective: Any, unit: Any, *, steps: int = 3) -> Any:
    for number in range(steps):
        objective.update(*batch(objective, unit, number))
    return objective


def test_a_file_is_an_objective(module: ModuleType) -> None:
    """`--objective NAME --objective.temperature 0.07` needs a Config of plain fields, with the file's name."""
    config = module.Config()
    assert dataclasses.is_dataclass(config)
    assert type(config).__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(config))
    assert config.name == module.__name__.rpartition(".")[2]
    objective = make(module)
    assert objective.space in ("teacher", "own")
    assert objective.momentum is None or 0 <= objective.momentum < 1


def test_the_first_step_has_a_finite_loss_that_can_be_trained_on(module: ModuleType, unit) -> None:
    """A run would die, or be lost to NaN, before it has an anchor to compare with."""
    objective = make(module)
    query, target, index = batch(objective, unit, 0)
    loss = loss_of(objective, query.requires_grad_(), target, index)
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert torch.isfinite(query.grad).all()


def test_the_gradient_reaches_the_query_alone(module: ModuleType, unit) -> None:
    """The frozen teacher would be asked for a gradient; old steps would be kept alive by the bank."""
    objective = warm(make(module), unit)
    query, target, index = batch(objective, unit, 5)
    loss_of(objective, query.requires_grad_(), target.requires_grad_(), index).backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
    assert target.grad is None
    objective.update(query * 1, target, index)
    assert not any(rows.requires_grad for rows in objective.state_dict().get("rows", {}).values())


def test_a_call_changes_nothing(module: ModuleType, unit) -> None:
    """A loss that is computed in parts, or only watched, would train another student."""
    objective = warm(make(module), unit)
    before, random = copy.deepcopy(objective.state_dict()), torch.get_rng_state()
    query, target, index = batch(objective, unit, 5)
    first = loss_of(objective, query, target, index)
    assert torch.equal(loss_of(objective, query, target, index), first)
    torch.testing.assert_close(objective.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_loss_is_a_mean_over_the_batch(module: ModuleType, unit) -> None:
    """Accumulated parts, weighted by their sizes, would not give the gradient of the whole."""
    objective = warm(make(module), unit)
    if getattr(objective, "within_batch", False):
        pytest.skip("compares the images of a batch with one another: distill refuses parts")
    query, target, index = batch(objective, unit, 5, count=5)
    whole = loss_of(objective, query, target, index)
    parts = [
        loss_of(objective, query[part], target[part], index[part]) * len(part) / 5 for part in torch.arange(5).split(2)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_a_step_may_be_written_before_the_graph_of_the_next_exists_but_after_its_own_backward(
    module: ModuleType, unit
) -> None:
    """The loop of distill would stop at the second step with an error about tensors modified in place."""
    objective = warm(make(module), unit)
    for number in range(5, 9):
        query, target, index = batch(objective, unit, number)
        loss_of(objective, query.requires_grad_(), target, index).backward()
        objective.update(query, target, index)


def test_a_resumed_objective_goes_on_with_the_same_losses(module: ModuleType, unit, tmp_path: Path) -> None:
    """A killed run would continue as another one."""
    objective = warm(make(module), unit)
    checkpoint.save(tmp_path / "last.ckpt", {"objective": as_distill_has_it(objective)}, {})
    resumed = make(module, seed=9)
    checkpoint.load(tmp_path / "last.ckpt", {"objective": as_distill_has_it(resumed)})
    for number in range(5, 11):
        query, target, index = batch(objective, unit, number)
        assert torch.equal(loss_of(resumed, query, target, index), loss_of(objective, query, target, index))
        for one in (objective, resumed):
            one.update(query, target, index)


def with_a_bank(module: ModuleType) -> bool:
    return hasattr(module.Config(), "bank_size")


def test_a_bank_holds_no_more_rows_than_there_are_images(module: ModuleType) -> None:
    """A small folder of pictures would be given a gigabyte, and the same image would stand in it several times."""
    if not with_a_bank(module):
        pytest.skip("needs no bank")
    assert make(module, images=7).bank.size == 7
    assert make(module, images=7, bank_size=5).bank.size == 5
    with pytest.raises(Refusal, match="bank-size"):
        make(module, bank_size=0)


def test_a_random_start_is_chosen_by_the_seed(module: ModuleType, unit) -> None:
    """Five seeds would share one bank, or one seed would not repeat."""
    if not hasattr(module.Config(), "start"):
        pytest.skip("starts in one way only")
    losses = []
    for seed in (3, 3, 4):
        objective = make(module, seed=seed, start="random")
        losses.append(float(loss_of(objective, *batch(objective, unit, 0)).detach()))
    assert losses[0] == losses[1]
    assert losses[0] > 0
    assert losses[0] != losses[2]


@pytest.mark.parametrize("temperature", [0.0, -0.04, float("nan")])
def test_a_temperature_that_divides_by_nothing_is_refused(module: ModuleType, temperature: float) -> None:
    """A typing error would show as a stack trace, after the teacher has been loaded."""
    if not hasattr(module.Config(), "temperature"):
        pytest.skip("has no temperature")
    with pytest.raises(Refusal, match=r"--objective.temperature expected more than 0( or auto)?, got"):
        make(module, temperature=temperature)


def test_an_unknown_objective_is_refused_with_the_nearest_name() -> None:
    """A typing error would be an import error."""
    with pytest.raises(Refusal, match=r"got 'compres_1q': did you mean 'compress_1q'\?"):
        objectives.find("compres_1q")
    with pytest.raises(Refusal, match=r"expected a module that can be imported, got 'nobody.mine'"):
        objectives.find("nobody.mine")


def test_a_dotted_name_reaches_a_module_outside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One's own objective would have to be copied into the package."""
    (tmp_path / "somebody").mkdir()
    (tmp_path / "somebody" / "__init__.py").write_text("")
    (tmp_path / "somebody" / "mine.py").write_text(
        "from compress_ssl.objectives.compress_1q import Config, Objective\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert objectives.find("somebody.mine").Objective is objectives.find("compress_1q").Objective


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("bfloat16", 2e-2), ("int8", 3e-2)])
@pytest.mark.parametrize("home", ["device", "host"])
def test_the_kind_and_place_of_the_bank_change_the_gradient_by_rounding_alone(
    module: ModuleType, unit, dtype: str, tolerance: float, home: str
) -> None:
    """`--objective.bank-dtype int8` would be another objective, or an option that is parsed and ignored."""
    if not issubclass(module.Config, bank.BankConfig):
        pytest.skip("keeps no bank")
    gradients = []
    for options in ({}, {"bank_dtype": dtype, "bank_home": home}):
        objective = warm(make(module, temperature=0.2, **options), unit)
        query, target, index = batch(objective, unit, 7)
        query = query.requires_grad_()
        loss_of(objective, query, target, index).backward()
        gradients.append(query.grad)
        assert objective.bank.dtype == bank.DTYPES[options.get("bank_dtype", "float32")]
    error = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    assert error <= tolerance
    assert (error > 0) == (dtype != "float32")


def test_a_calibrated_temperature_is_resumed_not_found_anew(module: ModuleType) -> None:
    """A resumed run would train with another temperature than the one it started with."""
    if not hasattr(module.Config(), "perplexity"):
        pytest.skip("has no temperature that can be calibrated")
    started, resumed = (make(module, temperature="auto") for _ in range(2))
    started.temperature, resumed.temperature = 0.031, 0.032
    resumed.load_state_dict(started.state_dict())
    assert resumed.temperature == 0.031


@pytest.mark.parametrize("path", ["naive", "streamed"])
def test_the_path_changes_how_the_loss_is_computed_not_what_it_is(module: ModuleType, unit, path: str) -> None:
    """A researcher who checks us with the naive path would check something else."""
    if not issubclass(module.Config, bank.BankConfig):
        pytest.skip("keeps no bank")
    losses = [
        float(loss_of(warm(make(module, path=name), unit), *batch(make(module), unit, 7)).detach())
        for name in ("auto", path)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_path_that_the_device_cannot_take_is_refused_before_the_run(module: ModuleType) -> None:
    """The first step would end in a traceback."""
    if not issubclass(module.Config, bank.BankConfig):
        pytest.skip("keeps no bank")
    with pytest.raises(Refusal, match=r"--objective.path fused expected a CUDA device and Triton, but .* cpu"):
        make(module, path="fused", temperature=0.04)
    with pytest.raises(Refusal, match=r"--objective.path naive expected --objective.bank-processes gathered"):
        make(module, path="naive", bank_processes="sharded")
    with pytest.raises(Refusal, match=r"--objective.path fused expected --objective.bank-home device, got host"):
        make(module, path="fused", bank_home="host")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="host and device are one memory without a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_bank_in_host_memory_trains_as_one_on_the_gpu(
    module: ModuleType, unit, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """A chunk that is read before it has arrived would be another image's."""
    if not issubclass(module.Config, bank.BankConfig):
        pytest.skip("keeps no bank")
    monkeypatch.setattr(streamed, "CHUNK_CUDA", 5)
    found = []
    for home in ("device", "host"):
        objective = make(module, device="cuda", bank_dtype=dtype, bank_home=home)
        for number in range(6):
            query, target, index = (part.cuda() for part in batch(objective, unit, number))
            query.requires_grad_()
            loss = loss_of(objective, query, target, index)
            loss.backward()
            found.append((home, float(loss.detach()), query.grad.cpu()))
            objective.update(query, target, index)
    for (_, loss, gradient), (_, other, others) in zip(found[:6], found[6:], strict=True):
        assert loss == other
        assert torch.equal(gradient, others)
