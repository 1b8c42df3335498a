"""The softmax regression against scikit-learn's and against a naive gradient in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from compress_ssl import softmax_regression as solver
from compress_ssl.softmax_regression import softmax_regression, standardiser

pytestmark = pytest.mark.filterwarnings("error:::compress_ssl")


def solve(rows: np.ndarray, targets: np.ndarray, **options: float) -> tuple[np.ndarray, np.ndarray]:
    found = softmax_regression(
        torch.from_numpy(rows),
        torch.from_numpy(targets),
        classes=int(targets.max()) + 1,
        **options,
    )
    return found[0].double().numpy(), found[1].double().numpy()


@pytest.mark.parametrize("weight_decay", [1e-4, 1e-2])
@pytest.mark.parametrize("classes", [3, 5])
def test_it_solves_scikit_learns_logistic_regression(problem, classes: int, weight_decay: float) -> None:
    """A short cut would be reported as the linear probe."""
    from sklearn.linear_model import LogisticRegression

    rows, targets = problem(classes=classes)
    weight, bias = solve(rows, targets, weight_decay=weight_decay)
    judge = LogisticRegression(C=1 / (len(rows) * weight_decay), tol=1e-10, max_iter=10_000)
    judge.fit(rows.astype(np.float64), targets)
    scale = np.abs(judge.coef_).max()
    np.testing.assert_allclose(weight, judge.coef_, atol=2e-3 * scale)
    np.testing.assert_allclose(bias - bias.mean(), judge.intercept_ - judge.intercept_.mean(), atol=2e-3 * scale)
    np.testing.assert_array_equal((rows @ weight.T + bias).argmax(axis=1), judge.predict(rows))


def test_the_solution_is_where_the_naive_gradient_vanishes(problem) -> None:
    """Two classes, one of them rare, and dimensions of very different curvature: the optimum would be missed."""
    rows, targets = problem(count=503, width=23, classes=2)
    targets[targets == 1] *= np.random.default_rng(1).random(int((targets == 1).sum())) < 0.2
    rows[:, 3] = rows[:, 5]  # two dimensions that say the same
    weight, bias = solve(rows, targets, weight_decay=1e-3)
    logits = rows.astype(np.float64) @ weight.T + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    wrong = odds / odds.sum(axis=1, keepdims=True) - np.eye(2)[targets]
    assert np.abs(wrong.T @ rows / len(rows) + 1e-3 * weight).max() < 2e-5
    assert np.abs(wrong.mean(axis=0)).max() < 2e-5
    np.testing.assert_allclose(weight[:, 3], weight[:, 5], atol=1e-3)


def test_more_dimensions_than_images_and_hardly_any_weight_decay_are_solved(problem) -> None:
    """A wide teacher on a small folder would end in an error about a matrix."""
    rows, targets = problem(count=23, width=67)
    weight, bias = solve(rows, targets, weight_decay=1e-9)
    np.testing.assert_array_equal((rows @ weight.T + bias).argmax(axis=1), targets)


def test_stopping_short_of_the_optimum_is_told(problem) -> None:
    """The number would be that of a solver, not of the embeddings."""
    rows, targets = problem(count=503, width=23)
    with pytest.warns(RuntimeWarning, match="stopped short of its optimum after 2 iterations"):
        solve(rows, targets, weight_decay=1e-4, iterations=2)


def loss(
    rows: np.ndarray, targets: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, weight_decay: float = 1e-4
) -> float:
    """What the regression makes small, naively, in float64."""
    logits = rows.astype(np.float64) @ weight.T + bias
    entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(rows)), targets]
    return entropy.mean() + weight_decay / 2 * (weight**2).sum()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("count", "width", "classes"),
    [(9001, 23, 11), (4001, 11, 31), (4001, 7, 5), (701, 47, 31)],
    ids=["apart", "overlapping", "few classes", "few images"],
)
def test_a_large_table_is_solved_to_within_thousandths(
    problem, count: int, width: int, classes: int, seed: int
) -> None:
    """The linear row of a large data set would be that of a solver that was in a hurry."""
    rows, targets = problem(count=count, width=width, classes=classes, seed=seed)
    size = rows.size * classes
    best = solve(rows, targets, weight_decay=1e-4, to_the_end=size)
    hasty = solve(rows, targets, weight_decay=1e-4, to_the_end=size - 1)
    assert 0 < loss(rows, targets, *hasty) - loss(rows, targets, *best) < 5e-3
    right, hastily_right = (np.mean((rows @ w.T + b).argmax(axis=1) == targets) for w, b in (best, hasty))
    assert abs(right - hastily_right) < 0.005
    again = solve(rows, targets, weight_decay=1e-4, to_the_end=size - 1)
    np.testing.assert_array_equal(again[0], hasty[0])


@pytest.mark.parametrize("decay", [1e-9, 1.0, 30.0])
def test_a_large_table_is_solved_with_any_weight_decay(problem, decay: float) -> None:
    """At the ends of the grid from which transfer chooses, numbers would be skewed, or none at all."""
    rows, targets = problem(count=4001, width=11, classes=31)
    best = solve(rows, targets, weight_decay=decay)
    hasty = solve(rows, targets, weight_decay=decay, to_the_end=1)
    nothing, least, reached = (
        loss(rows, targets, *layer, weight_decay=decay) for layer in ((np.zeros((31, 11)), np.zeros(31)), best, hasty)
    )
    assert 0 < reached - least < 0.05 * (nothing - least)


def test_a_large_table_with_images_enough_is_solved_in_few_passes(problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows would take an hour instead of minutes."""
    rows, targets = problem(count=12001, width=29, classes=7)
    whole: list[int] = []
    monkeypatch.setattr(solver, "_cross_entropy", lambda *_: whole.append(1))
    asked: list[int] = []
    plain = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *given: asked.append(given[2].shape[1]) or plain(*given))
    solve(rows, targets, weight_decay=1e-4, to_the_end=1)
    assert not whole
    assert 0 < sum(asked) <= 10 * len(rows)


def test_a_large_table_with_too_few_images_for_descent_settles_early(problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last digit it takes several times as many passes."""
    rows, targets = problem(count=701, width=47, classes=31)
    passes: list[int] = []
    plain = solver._cross_entropy
    monkeypatch.setattr(solver, "_cross_entropy", lambda *given: passes.append(1) or plain(*given))
    solve(rows, targets, weight_decay=1e-4)
    needed = len(passes)
    solve(rows, targets, weight_decay=1e-4, to_the_end=rows.size * 31 - 1)
    assert 10 < len(passes) - needed < needed / 2


def test_stopping_short_is_told_of_a_large_table_too(problem) -> None:
    """Whoever sets a limit would not learn that it was too low."""
    rows, targets = problem(count=503, width=53, classes=11)  # too few images for descent
    with pytest.warns(RuntimeWarning, match="stopped short of its optimum after 2 iterations"):
        solve(rows, targets, weight_decay=1e-4, iterations=2, to_the_end=1)


def test_rows_are_standardised_as_by_scikit_learn() -> None:
    """Dimensions of small variance would not count; one that is always zero, as dead units are, would divide by it."""
    from sklearn.preprocessing import StandardScaler

    rows = np.random.default_rng(0).standard_normal((4999, 5)).astype(np.float32) * [1, 0.1, 0, 0.01, 3] + 2
    rows = rows.astype(np.float32)
    mean, scale = standardiser(torch.from_numpy(rows))
    expected = StandardScaler().fit_transform(rows.astype(np.float64))
    np.testing.assert_allclose((rows - mean.numpy()) * scale.numpy(), expected, atol=2e-4)
    assert scale[2] == 1


@pytest.mark.parametrize("count", [23, 101])
@pytest.mark.parametrize("decay", [1e-2, 1.0])
def test_it_is_scikit_learns_whether_rows_or_dimensions_are_more(count: int, decay: float) -> None:
    """The short cut through the rows' own space would be another regression."""
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    rows = generator.standard_normal((count, 67)).astype(np.float32)
    targets = generator.integers(0, 3, count)
    found = softmax_regression(torch.from_numpy(rows), torch.from_numpy(targets), classes=3, weight_decay=decay)
    weight, bias = (one.numpy() for one in found)
    judge = LogisticRegression(C=1 / (count * decay), tol=1e-10, max_iter=10_000).fit(rows.astype(np.float64), targets)
    scale = np.abs(judge.coef_).max()
    np.testing.assert_allclose(weight, judge.coef_, atol=1e-3 * scale)
    np.testing.assert_allclose(bias - bias.mean(), judge.intercept_ - judge.intercept_.mean(), atol=1e-3)
    assert weight.dtype == bias.dtype == np.float32


def test_few_rows_of_a_wide_layer_factorise_a_matrix_of_their_number(problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer of 9216 dimensions would take minutes and gigabytes for 47 images, or for 1 % of the labels."""
    factorise, sizes = scipy.linalg.cholesky, []

    def watched(matrix: np.ndarray, **options: Any) -> np.ndarray:
        sizes.append(matrix.shape)
        return factorise(matrix, **options)

    monkeypatch.setattr(scipy.linalg, "cholesky", watched)
    rows, targets = problem(count=31, width=503)
    before = rows.copy()
    solve(rows, targets, weight_decay=1e-2)
    assert sizes == [(31, 31)]
    np.testing.assert_array_equal(rows, before)
