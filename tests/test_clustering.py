"""k-means and the matching of clusters to classes, against loops, permutations and faiss."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compress_ssl.clustering import align, assign, k_means, overlap_table


def unit(count: int, width: int, *, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def within(rows: np.ndarray, centroids: np.ndarray, assignments: np.ndarray) -> float:
    return float(((rows - centroids[assignments]) ** 2).sum())


def best_share(table: np.ndarray) -> float:
    """The largest summed share over all one-to-one matchings, tried one by one."""
    shares = np.array([[n / sum(row) if sum(row) else 0.0 for n in row] for row in table.tolist()])
    if shares.shape[0] > shares.shape[1]:
        shares = shares.T
    few, many = shares.shape
    return max(
        sum(shares[i, j] for i, j in zip(range(few), chosen, strict=True))
        for chosen in itertools.permutations(range(many), few)
    )


@given(
    arrays.arrays(
        np.int64, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=5), elements=st.integers(0, 9)
    )
)
@settings(deadline=None)
def test_no_other_one_to_one_matching_has_a_larger_share(table: np.ndarray) -> None:
    """Cluster alignment would depend on the order of the clusters and lie below the paper's."""
    class_of = align(table)
    matched = np.flatnonzero(class_of >= 0)
    assert len(matched) == min(table.shape)
    assert len(set(class_of[matched])) == len(matched)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    assert shares[matched, class_of[matched]].sum() == pytest.approx(best_share(table))


def test_a_small_pure_cluster_weighs_as_much_as_a_large_one() -> None:
    """Matching by counts, as most libraries do, gives other numbers than the paper."""
    table = np.array([[60, 40], [3, 0]])
    assert align(table).tolist() == [1, 0]  # shares 0.4 + 1.0 against 0.6 + 0.0; counts would say 60 + 0 against 43
    assert table[0, 0] + table[1, 1] > table[0, 1] + table[1, 0]


@given(st.integers(0, 23), st.integers(0, 1000))
@settings(deadline=None)
def test_overlap_table_counts_every_pair(count: int, seed: int) -> None:
    """A transposed or flattened table still has the right total."""
    generator = np.random.default_rng(seed)
    clusters, classes = generator.integers(0, 5, count), generator.integers(0, 3, count)
    expected = np.zeros((5, 3), dtype=np.int64)
    for cluster, label in zip(clusters, classes, strict=True):
        expected[cluster, label] += 1
    np.testing.assert_array_equal(overlap_table(clusters, classes, clusters=5, class_count=3), expected)


@pytest.mark.parametrize(
    ("clusters", "classes"), [([0, 5], [0, 1]), ([0, 1], [0, 3]), ([-1, 1], [0, 1]), ([0, 1], [-1, 2])]
)
def test_numbers_outside_the_table_are_named(clusters: list[int], classes: list[int]) -> None:
    """An unlabelled image would be counted in a neighbouring cell."""
    with pytest.raises(ValueError, match=r"^expected (clusters|classes) in \[0, [53]\), got "):
        overlap_table(np.array(clusters), np.array(classes), clusters=5, class_count=3)


@pytest.mark.parametrize("start", ["k-means++", "random"])
def test_k_means_ends_where_each_centroid_is_the_mean_of_its_rows(start: str) -> None:
    """The clusters would not be k-means clusters."""
    rows = unit(101, 7)
    centroids, assignments = k_means(rows, clusters=5, iterations=300, seed=3, start=start, attempts=1)
    expected = np.stack([rows[assignments == cluster].mean(axis=0) for cluster in range(5)])
    np.testing.assert_allclose(centroids, expected, atol=1e-6)
    np.testing.assert_array_equal(assign(rows, centroids), assignments)


def test_assignments_are_to_the_nearest_centroid_even_when_iterations_run_out() -> None:
    """Train and test images would be mapped by two different rules."""
    rows = unit(101, 7)
    centroids, assignments = k_means(rows, clusters=11, iterations=1, seed=3, start="random", attempts=1)
    distances = ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(assignments, distances.argmin(axis=1))


def test_assign_agrees_with_faiss() -> None:
    """Our clusters could not be compared with those of the usual tool."""
    faiss = pytest.importorskip("faiss", reason="faiss is one of the development extras")
    rows, centroids = unit(203, 7), unit(11, 7, seed=1)
    index = faiss.IndexFlatL2(7)
    index.add(centroids)
    np.testing.assert_array_equal(assign(rows, centroids), index.search(rows, 1)[1][:, 0])


def test_more_attempts_never_give_looser_clusters() -> None:
    """Asking for more starts would cost time and buy nothing."""
    rows = unit(101, 7)
    tightness = [
        within(rows, *k_means(rows, clusters=11, iterations=20, seed=0, start="random", attempts=attempts))
        for attempts in (1, 5, 25)
    ]
    assert tightness[0] > tightness[2]
    assert tightness[0] >= tightness[1] >= tightness[2]


def test_a_start_on_a_sample_gives_clusters_as_tight_as_one_on_all_rows() -> None:
    """A thousand classes would be clustered worse than ten, or in an hour."""
    from sklearn.cluster import KMeans

    generator = np.random.default_rng(0)
    rows = (unit(37, 13)[generator.integers(0, 37, 3001)] + 0.1 * unit(3001, 13, seed=1)).astype(np.float32)
    options = {"clusters": 37, "iterations": 20, "start": "k-means++", "attempts": 3}
    sampled, judged, drawn = [], [], []
    for seed in range(3):
        centroids, assignments = k_means(rows, seed=seed, start_pairs=37 * 300, **options)
        np.testing.assert_array_equal(assign(rows, centroids), assignments)
        assert centroids.shape == (37, 13)
        sampled.append(within(rows, centroids, assignments))
        judged.append(KMeans(37, n_init=3, max_iter=20, random_state=seed).fit(rows).inertia_)
        drawn.append(KMeans(37, init="random", n_init=1, max_iter=20, random_state=seed).fit(rows).inertia_)
    assert np.mean(sampled) < 1.05 * np.mean(judged)
    assert np.mean(drawn) > 1.1 * np.mean(judged)  # so that the start matters here


def test_small_tables_start_from_all_rows_and_random_starts_always_do() -> None:
    """Published numbers would change with a constant that is about speed."""
    rows = unit(211, 7)
    options = {"clusters": 11, "iterations": 20, "seed": 0, "attempts": 2}
    everything = k_means(rows, start="k-means++", start_pairs=211 * 11, **options)[0]
    np.testing.assert_array_equal(k_means(rows, start="k-means++", **options)[0], everything)
    assert (k_means(rows, start="k-means++", start_pairs=1, **options)[0] != everything).any()
    paper = k_means(rows, start="random", **options)[0]
    np.testing.assert_array_equal(k_means(rows, start="random", start_pairs=1, **options)[0], paper)


def test_stored_half_precision_rows_are_clustered_in_single_precision() -> None:
    """A float16 table of ImageNet would be copied in float64: 5 GB."""
    rows = unit(101, 7).astype(np.float16)
    options = {"clusters": 5, "iterations": 20, "seed": 0, "start": "k-means++", "attempts": 1}
    centroids, assignments = k_means(rows, **options)
    expected = k_means(rows.astype(np.float32), **options)
    assert centroids.dtype == np.float32
    np.testing.assert_array_equal(centroids, expected[0])
    np.testing.assert_array_equal(assignments, expected[1])


def test_a_seed_repeats_and_another_seed_differs() -> None:
    """Nobody could reproduce a table of results."""
    rows = unit(101, 7)
    first, again, other = (
        k_means(rows, clusters=11, iterations=20, seed=seed, start="k-means++", attempts=1)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_rows_that_repeat_leave_clusters_empty_without_a_warning() -> None:
    """A collapsed encoder would end the evaluation in a stack trace, where it deserves a low score."""
    rows = np.repeat(unit(3, 5), 7, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        centroids, assignments = k_means(rows, clusters=11, iterations=20, seed=0, start="k-means++", attempts=1)
    assert len(centroids) == 11
    assert len(set(assignments)) == 3
    table = overlap_table(assignments, np.repeat([0, 1, 2], 7), clusters=11, class_count=3)
    class_of = align(table)
    assert class_of[assignments].tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert (class_of == -1).sum() == 8


def test_clusters_are_capped_at_the_number_of_rows_and_the_rows_stay_as_they_were() -> None:
    """Five images could not be evaluated, or would be centred in place for whatever is evaluated next."""
    rows = unit(5, 3)
    before = rows.copy()
    centroids, assignments = k_means(rows, clusters=7, iterations=20, seed=0, start="random", attempts=1)
    assert len(centroids) == 5
    assert sorted(assignments) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(rows, before)
