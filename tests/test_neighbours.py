"""Exact neighbours against a float64 sort of the whole gallery, scikit-learn and faiss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress_ssl import neighbours
from compress_ssl.neighbours import nearest_neighbours, own_positions

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def unit(count: int, width: int, *, seed: int = 0) -> Tensor:
    rows = torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows).float()


def naive(queries: Tensor, gallery: Tensor, count: int, own: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Sort the whole gallery in float64; similarities within 1e-9 are ties, the earlier row first."""
    similarities = queries.cpu().double().numpy() @ gallery.cpu().double().numpy().T
    steps = np.round(similarities * 2**30)
    if own is not None:
        for query, position in enumerate(own.tolist()):
            if position >= 0:
                steps[query, position] = -np.inf
    positions = np.argsort(-steps, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(similarities, positions, axis=1), positions


def assert_exact(queries: Tensor, gallery: Tensor, count: int, **options: object) -> None:
    similarities, positions = nearest_neighbours(queries, gallery, count=count, **options)
    own = options.get("own")
    assert own is None or isinstance(own, Tensor)
    expected, where = naive(queries, gallery, count, own)
    np.testing.assert_array_equal(positions.cpu().numpy(), where)
    np.testing.assert_allclose(similarities.cpu().numpy(), expected, atol=1e-7)
    assert similarities.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 7, 20])
def test_neighbours_are_those_of_a_float64_sort(count: int, device: str) -> None:
    """Accuracies would depend on how a product was rounded."""
    assert_exact(unit(31, 13, seed=1).to(device), unit(503, 13).to(device), count)


@given(
    st.integers(1, 9), st.integers(2, 61), st.integers(1, 5), st.integers(1, 7), st.integers(1, 99), st.integers(0, 999)
)
@settings(deadline=None, max_examples=100)
def test_no_chunking_changes_the_answer(q: int, n: int, width: int, count: int, at_once: int, seed: int) -> None:
    """The same embeddings would score differently on a machine with less memory. In few dimensions ties abound."""
    queries, gallery = unit(q, width, seed=seed), unit(n, width, seed=seed + 1)
    gallery[n // 2 :] = gallery[: n - n // 2].clone()  # half of the gallery twice
    own = torch.randint(-1, n, (q,), generator=torch.Generator().manual_seed(seed))
    queries[own >= 0] = gallery[own[own >= 0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "SPARE", 2)
        patch.setattr(neighbours, "QUERIES", 4)
        assert_exact(queries, gallery, min(count, n), at_once=at_once)
        assert_exact(queries, gallery, min(count, n - 1), at_once=at_once, own=own)


@pytest.mark.parametrize("device", DEVICES)
def test_a_collapsed_encoder_gets_the_first_rows_of_the_gallery(device: str) -> None:
    """With every row the same, neighbours would come from rounding noise and change with the chunk size."""
    gallery = unit(1, 37, seed=5).expand(203, 37).contiguous().to(device)
    _, positions = nearest_neighbours(gallery[:11], gallery, count=3, at_once=300)
    np.testing.assert_array_equal(positions.cpu().numpy(), np.tile([0, 1, 2], (11, 1)))


def test_rows_closer_than_float32_can_tell_are_told_apart() -> None:
    """A nearly collapsed encoder would be scored by rounding."""
    axis = torch.zeros(7)
    axis[0] = 1
    query = torch.nn.functional.normalize(axis + 0.3 * unit(1, 7, seed=1)[0], dim=0)[None]
    gallery = torch.nn.functional.normalize(
        axis + 1e-7 * torch.randn(301, 7, generator=torch.Generator().manual_seed(2))
    )
    assert len(torch.unique(query @ gallery.T)) < 20  # float32 sees a handful of different similarities
    assert_exact(query, gallery, 11)


def test_a_product_of_low_precision_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training sets TF32 or autocast for the whole process; scores taken meanwhile would be those of another model."""
    plain = neighbours._product

    def rounded(queries: Tensor, rows: Tensor) -> Tensor:
        return plain(queries.bfloat16(), rows.bfloat16()).bfloat16().float()  # (n, Q)

    queries, gallery = unit(203, 13, seed=1), unit(1009, 13)
    missed = [
        set(found) - set(proposed)
        for found, proposed in zip(
            naive(queries, gallery, 5)[1].tolist(), rounded(queries, gallery).T.topk(6).indices.tolist(), strict=True
        )
    ]
    assert any(missed)  # so that six candidates in low precision do not hold the five nearest
    monkeypatch.setattr(neighbours, "_product", rounded)
    monkeypatch.setattr(neighbours, "SPARE", 1)
    assert_exact(queries, gallery, 5)


def test_autocast_around_the_call_changes_nothing() -> None:
    """The validation score during a bfloat16 training would differ from the one of `evaluate`."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_exact(unit(31, 13, seed=1), unit(503, 13), 7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("at_once", [1, 200, 2**24])
def test_a_query_is_never_its_own_neighbour(at_once: int, device: str) -> None:
    """Scoring images against themselves would give 100 % whatever the encoder."""
    gallery = unit(101, 5).to(device)
    own = torch.tensor([100, -1, 0, 50, 7], device=device)
    queries = gallery[own.clamp(min=0)]
    assert_exact(queries, gallery, 3, own=own, at_once=at_once)
    _, positions = nearest_neighbours(queries, gallery, count=3, own=own)
    assert not (positions == own[:, None]).any()
    assert positions[1, 0] == 0  # the query that is not in the gallery finds its twin


def test_scratch_memory_does_not_grow_with_the_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation on ImageNet would need 50 000 × 1 280 000 similarities, 256 GB."""
    seen = []
    plain = neighbours._product
    monkeypatch.setattr(neighbours, "_product", lambda *rows: seen.append(plain(*rows)) or seen[-1])
    nearest_neighbours(unit(31, 5), unit(1009, 5, seed=1), count=3, at_once=500)
    assert len(seen) > 50
    assert max(similarities.numel() for similarities in seen) <= 500


@pytest.mark.parametrize("order", ["drawn", "nearest first", "nearest last", "one class after another"])
@pytest.mark.parametrize("chunk", [160, 333, 5000])
def test_blocks_that_are_passed_over_hold_no_neighbour(order: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gallery of many rows, sorted as folders are, would hide some of its rows."""
    monkeypatch.setattr(neighbours, "SPARE", 1)
    queries, gallery = unit(37, 7, seed=1), unit(1999, 7)
    if order.startswith("nearest"):
        queries[:] = torch.nn.functional.normalize(queries[:1] + 0.01 * queries)
        gallery = gallery[(gallery @ queries[0]).argsort(descending=order == "nearest first")]
    if order == "one class after another":
        gallery = gallery[(gallery @ unit(11, 7, seed=2).T).argmax(dim=1).argsort()]
    assert_exact(queries, gallery, 2, at_once=len(queries) * chunk)
    assert_exact(queries, torch.cat([gallery, gallery[:100]]), 5, at_once=len(queries) * chunk)  # rows that repeat


def test_neighbours_agree_with_scikit_learn_and_faiss() -> None:
    """Nobody could check our numbers with the usual tools."""
    faiss = pytest.importorskip("faiss", reason="faiss is one of the development extras")
    from sklearn.neighbors import NearestNeighbors

    queries, gallery = unit(31, 13, seed=1), unit(503, 13)
    positions = nearest_neighbours(queries, gallery, count=7)[1].numpy()
    for metric in ("cosine", "euclidean"):
        search = NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(gallery.numpy())
        np.testing.assert_array_equal(positions, search.kneighbors(queries.numpy(), return_distance=False))
    for index in (faiss.IndexFlatIP(13), faiss.IndexFlatL2(13)):
        index.add(gallery.numpy())
        np.testing.assert_array_equal(positions, index.search(queries.numpy(), 7)[1])


def test_asking_for_more_than_there_is_gives_all_there_is() -> None:
    """The default of 20 neighbours would refuse a small folder of pictures."""
    queries, gallery = unit(3, 5, seed=1), unit(7, 5)
    assert_exact(queries, gallery, 7)
    assert nearest_neighbours(queries, gallery, count=20)[1].shape == (3, 7)
    own = torch.tensor([-1, 2, -1])
    assert nearest_neighbours(queries, gallery, count=20, own=own)[1].shape == (3, 6)


def test_half_precision_rows_are_compared_as_they_are() -> None:
    """Stored float16 tables would have to be converted by every caller."""
    queries, gallery = unit(5, 13, seed=1).half(), unit(101, 13).half()
    assert_exact(queries, gallery, 7)


def test_inputs_stay_as_they_were() -> None:
    """The second evaluation of a run would see other embeddings than the first."""
    queries, gallery, own = unit(5, 7, seed=1), unit(101, 7), torch.tensor([0, 1, 2, -1, 4])
    before = queries.clone(), gallery.clone(), own.clone()
    nearest_neighbours(queries, gallery, count=3, own=own)
    assert all(torch.equal(*pair) for pair in zip((queries, gallery, own), before, strict=True))


def test_own_positions_are_found_by_id() -> None:
    """Leave-one-out would leave out somebody else after a reordering."""
    assert own_positions(["b", "x", "a", "b"], ["a", "b", "c"]).tolist() == [1, -1, 0, 1]
    with pytest.raises(ValueError, match="expected different ids in the gallery, got 3 ids of which 2 differ"):
        own_positions(["a"], ["a", "b", "a"])


@pytest.mark.parametrize(
    ("queries", "gallery", "options", "told"),
    [
        (unit(3, 5), unit(7, 4), {}, r"got \(3, 5\) and \(7, 4\)"),
        (unit(3, 5)[0], unit(7, 5), {}, "of one width"),
        (unit(3, 5), unit(7, 5), {"count": 0}, "at least 1 neighbour, got 0"),
        (2 * unit(3, 5), unit(7, 5), {}, "queries of length 1, got lengths 2"),
        (unit(3, 5), unit(7, 5) * torch.nan, {}, "gallery of length 1, got lengths nan"),
        (unit(3, 5), unit(7, 5), {"own": torch.tensor([1, 2])}, r"3 positions below 7, .* got \(2,\)"),
        (unit(3, 5), unit(7, 5), {"own": torch.tensor([1, 2, 7])}, "3 positions below 7"),
        (unit(3, 5), unit(1, 5), {"own": torch.tensor([-1, 0, -1])}, "besides the query itself, got 1 in all"),
        (unit(3, 5), unit(0, 5), {}, "at least one image in the gallery"),
    ],
)
def test_what_cannot_be_compared_is_named(queries: Tensor, gallery: Tensor, options: dict, told: str) -> None:
    """A NaN or a width that does not fit would come out as neighbours of nothing."""
    with pytest.raises(ValueError, match=rf"^expected .*{told}.*: "):
        nearest_neighbours(queries, gallery, **{"count": 1, **options})
