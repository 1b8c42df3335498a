"""What several processes tell each other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from compress_ssl import processes
from compress_ssl.refusal import Refusal


@pytest.mark.parametrize("several", [1, 2])
def test_what_goes_wrong_in_the_first_process_is_raised_there(several: int) -> None:
    """The others would wait a day in a collective, or tell the same error once more each."""

    class Fabric:
        world_size, device = several, torch.device("cpu")

        def __init__(self, *, first: bool):
            self.is_global_zero = first

        def all_reduce(self, value: torch.Tensor, *, reduce_op: str) -> torch.Tensor:
            assert reduce_op == "max"
            return value if self.is_global_zero else torch.tensor(1.0)

    def fail() -> None:
        raise Refusal("expected room")

    with pytest.raises(Refusal, match="expected room"):
        processes.on_first(Fabric(first=True), fail)  # type: ignore[arg-type]
    assert processes.on_first(Fabric(first=True), lambda: 7) == 7  # type: ignore[arg-type]
    if several > 1:
        with pytest.raises(SystemExit) as caught:
            processes.on_first(Fabric(first=False), lambda: pytest.fail("not this one's work"))  # type: ignore[arg-type]
        assert caught.value.code == 0


@pytest.mark.parametrize(
    ("several", "strategy", "here"),
    [(1, object(), 1), (2, SimpleNamespace(num_nodes=1), 2), (8, SimpleNamespace(num_nodes=2), 4)],
)
def test_severalof_other_machines_are_not_counted_here(several: int, strategy: object, here: int) -> None:
    """Eight machines with room for one table each would be told that eight tables do not fit."""
    fabric = SimpleNamespace(world_size=several, strategy=strategy)
    assert processes.on_this_machine(fabric) == here  # type: ignore[arg-type]
