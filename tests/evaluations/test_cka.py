"""CKA against its definition with N × N kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compress_ssl.evaluations import Embedded, cka
from compress_ssl.evaluations.cka import Config, evaluate, linear_cka, unfit


def rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit rows around a common direction, as embeddings are."""
    found = np.random.default_rng(seed).standard_normal((count, width)) + 0.7
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def naive(first: np.ndarray, second: np.ndarray) -> float:
    """Kornblith et al., Eq. 2–3: HSIC of centred kernels, images × images."""
    kernels = [one.astype(np.float64) @ one.T.astype(np.float64) for one in (first, second)]
    centring = np.eye(len(first)) - 1 / len(first)
    k, l = (centring @ kernel @ centring for kernel in kernels)  # noqa: E741
    return np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l))


def naive_unbiased(first: np.ndarray, second: np.ndarray) -> float:
    """Song et al., Eq. 5, word by word, on kernels that nobody has centred."""
    count = len(first)
    k, l = (one.astype(np.float64) @ one.T.astype(np.float64) * (1 - np.eye(count)) for one in (first, second))  # noqa: E741
    ones = np.ones(count)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        products = np.trace(a @ b) + (ones @ a @ ones) * (ones @ b @ ones) / ((count - 1) * (count - 2))
        return (products - 2 / (count - 2) * ones @ a @ b @ ones) / (count * (count - 3))

    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize(("count", "widths"), [(53, (7, 11)), (13, (23, 5)), (5, (3, 3))])
@pytest.mark.parametrize("chunk", [4, 4096])
def test_it_is_the_definition_without_its_kernels(
    count: int, widths: tuple[int, int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A similarity of models would be quoted under Kornblith's name that is another."""
    monkeypatch.setattr(cka, "CHUNK", chunk)
    first, second = rows(count, widths[0]), rows(count, widths[1], seed=1)
    second[:, :3] += 0.8 * first[:, :3]
    one, other = torch.from_numpy(first), torch.from_numpy(second)
    assert linear_cka(one, other) == pytest.approx(naive(first, second), rel=1e-10)
    assert linear_cka(one, other, unbiased=True) == pytest.approx(naive_unbiased(first, second), rel=1e-9)
    assert 0.02 < naive(first, second) < 0.98


def test_a_rotation_and_a_scale_change_nothing() -> None:
    """A student in a space of its own would be punished for it."""
    first = rows(53, 7).astype(np.float64)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))[0]
    for unbiased in (False, True):
        found = linear_cka(torch.from_numpy(first), torch.from_numpy(3 * first @ turn), unbiased=unbiased)
        assert found == pytest.approx(1)


def test_unrelated_models_look_alike_to_the_plain_one_only() -> None:
    """With few test images every student would seem to be its teacher's twin."""
    first, second = torch.from_numpy(rows(40, 400)), torch.from_numpy(rows(40, 300, seed=1))
    assert linear_cka(first, second) > 0.8
    assert abs(linear_cka(first, second, unbiased=True)) < 0.1


def test_a_collapsed_student_is_like_nobody(embedded: Embedded) -> None:
    """Rounding noise of equal rows would be compared, and be called a similarity."""
    assert embedded.teacher is not None
    point = replace(embedded.test, rows=np.repeat(embedded.test.rows[:1], len(embedded.test.ids), axis=0))
    found = evaluate(replace(embedded, test=point), Config())
    assert found == {"cka": 0.0, "cka_unbiased": 0.0}


def test_metrics_are_of_the_test_images(embedded: Embedded) -> None:
    """Train images are those that both may have learnt by heart."""
    assert embedded.teacher is not None
    theirs, ours = embedded.teacher.test.rows, embedded.test.rows
    assert evaluate(embedded, Config()) == pytest.approx(
        {"cka": naive(ours, theirs), "cka_unbiased": naive_unbiased(ours, theirs)}
    )
    assert unfit(replace(embedded, teacher=None)) == "needs the teacher's embeddings"


def test_rows_of_other_images_are_refused() -> None:
    """Rows would be paired by place, whatever they show."""
    with pytest.raises(ValueError, match=r"at least 1 rows of the same images, got \(5, 3\) and \(4, 3\)"):
        linear_cka(torch.ones(5, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match="at least 4 rows"):
        linear_cka(torch.ones(3, 3), torch.ones(3, 3), unbiased=True)
