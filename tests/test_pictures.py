"""What a person looks at: queries with their neighbours, clusters, thumbnails."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from compress_ssl import datasets
from compress_ssl.embeddings import Embeddings
from compress_ssl.evaluations import Embedded
from compress_ssl.pictures import choose


class Drawn:
    """A set of pictures of one colour each, (H, W) as given; picture k is grey k."""

    def __init__(self, name: str, count: int, *, shape=(5, 7), classes=("ant", "bee", "cat"), labelled=True):
        self.name, self.shape, self.classes = name, shape, classes if labelled else ()
        self.ids = tuple(f"{name}/{number}" for number in range(count))
        self.labels = np.arange(count) % len(classes) if labelled else np.full(count, -1)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, position: int) -> np.ndarray:
        return np.full((*self.shape, 3), position, np.uint8)

    def fingerprint(self) -> str:
        return self.name


def rows_of(images: Drawn, seed: int, *, keep=None) -> Embeddings:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((len(images), 11)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept = np.arange(len(images)) if keep is None else keep
    return Embeddings(rows[kept], images.labels[kept], tuple(images.ids[place] for place in kept))


def embedded(train: Drawn, test: Drawn, seed: int, **keep) -> Embedded:
    return Embedded(train=rows_of(train, seed, **keep), test=rows_of(test, seed + 100))


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def chosen(train: Drawn, test: Drawn, **options) -> tuple[dict[str, Embedded], dict]:
    models = {"teacher": embedded(train, test, 1), "student": embedded(train, test, 2)}
    return models, choose(models, train, test, **options)


def test_neighbours_are_each_models_nearest_by_arithmetic():
    """Pictures that belong to other rows would show a student as better or worse than it is."""
    train, test = Drawn("train", 101), Drawn("test", 37)
    models, shown = chosen(train, test)
    assert len(shown["queries"]) == 12
    assert set(shown["queries"]) <= set(test.ids)
    for name, model in models.items():
        assert list(shown["neighbours"][name]) == shown["queries"]
        for query, found in shown["neighbours"][name].items():
            similarity = model.train.rows @ model.test.rows[model.test.ids.index(query)]
            assert found == [model.train.ids[place] for place in np.argsort(-similarity)[:6]]


def test_every_picture_that_is_shown_is_there_with_its_label():
    """The page would have holes, or a picture under another's name."""
    train, test = Drawn("train", 101), Drawn("test", 37)
    _, shown = chosen(train, test)
    named = set(shown["queries"])
    for name in ("teacher", "student"):
        named |= {id for ids in shown["neighbours"][name].values() for id in ids}
        named |= {id for row in shown["clusters"][name] for id in row}
    assert shown["pictures"].keys() == shown["labels"].keys() == named
    for id in named:
        number = int(id.partition("/")[2])
        assert (pixels(shown["pictures"][id]) == number).all(), "small pictures are shown exactly"
        assert shown["labels"][id] == ("ant", "bee", "cat")[number % 3]


def test_clusters_are_rows_of_pictures_that_lie_together():
    """A row of the page would not be a cluster."""
    train, test = Drawn("train", 90), Drawn("test", 11)
    random = np.random.default_rng(0)
    centres = np.linalg.qr(random.standard_normal((11, 11)))[0][:3]
    rows = centres[np.arange(90) % 3] + 0.01 * random.standard_normal((90, 11))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    model = Embedded(train=Embeddings(rows, train.labels, train.ids), test=rows_of(test, 5))
    found = choose({"teacher": model}, train, test)["clusters"]["teacher"]
    assert len(found) == 3, "one for each class of the data"
    for row in found:
        assert len(row) == len(set(row)) == 10
        assert len({int(id.partition("/")[2]) % 3 for id in row}) == 1


def test_at_most_a_dozen_clusters_are_shown():
    """A thousand classes would make a page of a thousand rows."""
    classes = tuple(f"class{number}" for number in range(17))
    train, test = Drawn("train", 238, classes=classes), Drawn("test", 37, classes=classes)
    _, shown = chosen(train, test)
    assert len(shown["clusters"]["teacher"]) == 12


def test_the_choice_is_the_same_every_time_and_another_with_another_seed():
    """Two pages of one run would show other pictures, and nobody could tell what changed."""
    train, test = Drawn("train", 101), Drawn("test", 37)
    assert chosen(train, test)[1] == chosen(train, test)[1]
    assert chosen(train, test)[1]["queries"] != chosen(train, test, seed=1)[1]["queries"]


def test_images_without_labels_have_none():
    """A class name would be made up."""
    train, test = Drawn("train", 101, labelled=False), Drawn("test", 37, labelled=False)
    _, shown = chosen(train, test)
    assert set(shown["labels"].values()) == {None}
    assert 1 < len(shown["clusters"]["teacher"]) <= 10


def test_labels_without_names_are_numbers():
    """A parquet table with bare integers would end in an index error."""
    train, test = Drawn("train", 101), Drawn("test", 37)
    train.classes = test.classes = ()
    _, shown = chosen(train, test)
    assert set(shown["labels"].values()) == {"0", "1", "2"}


@pytest.mark.parametrize(("train_count", "test_count"), [(3, 1), (1, 1), (7, 5), (13, 2)])
def test_few_images_show_what_there_is(train_count, test_count):
    """A small folder has fewer images than neighbours, queries or clusters to show."""
    train, test = Drawn("train", train_count, labelled=False), Drawn("test", test_count, labelled=False)
    _, shown = chosen(train, test)
    assert len(shown["queries"]) == min(12, test_count)
    for found in shown["neighbours"]["student"].values():
        assert len(found) == len(set(found)) == min(6, train_count)
    assert 1 <= len(shown["clusters"]["student"]) <= train_count


def test_images_that_have_no_row_are_never_read():
    """The page would fail on the very file that was skipped, after everything else was done."""
    train, test = Drawn("train", 41), Drawn("test", 11)
    kept = np.array([place for place in range(41) if place not in (3, 17)])
    read = Drawn.read

    class Broken(Drawn):
        def read(self, position):
            assert position not in (3, 17)
            return read(self, position)

    train = Broken("train", 41)
    shown = choose({"teacher": embedded(train, test, 1, keep=kept)}, train, test)
    assert not {"train/3", "train/17"} & shown["pictures"].keys()
    assert len(shown["pictures"]) > 20


def test_two_pictures_of_one_id_are_both_shown():
    """cat/1.png of train and of test: a query would be shown as the training picture of its name."""
    train, test = Drawn("same", 41), Drawn("same", 11)
    test.read = lambda position: np.full((5, 7, 3), 200 + position, np.uint8)
    shown = choose({"teacher": embedded(train, test, 1)}, train, test)
    values = {query: int(pixels(shown["pictures"][query])[0, 0, 0]) for query in shown["queries"]}
    assert sorted(values.values()) == list(range(200, 211))
    for ids in shown["neighbours"]["teacher"].values():
        assert all(pixels(shown["pictures"][id])[0, 0, 0] < 41 for id in ids)


def test_large_pictures_become_small_ones():
    """A page of a dozen megapixel photographs would weigh a hundred megabytes."""
    train, test = Drawn("train", 31, shape=(700, 1100)), Drawn("test", 13, shape=(3, 900))
    _, shown = chosen(train, test)
    sizes = {pixels(url).shape for url in shown["pictures"].values()}
    assert sizes == {(61, 96, 3), (1, 96, 3)}
    assert len(json.dumps(shown)) < 300_000
    assert all(url.startswith("data:image/jpeg;base64,") for url in shown["pictures"].values())


def test_real_digits_can_be_shown():
    """The demo's own pictures, 8 × 8 pixels, exactly as they are."""
    splits = datasets.open_splits("digits")
    train, test = datasets.subset(splits.train, np.arange(50)), datasets.subset(splits.test, np.arange(20))
    model = Embedded(train=rows_of(train, 1), test=rows_of(test, 2))
    shown = choose({"teacher": model}, train, test)
    first = shown["queries"][0]
    np.testing.assert_array_equal(pixels(shown["pictures"][first]), test.read(test.ids.index(first)))
    assert shown["labels"][first] == str(test.labels[test.ids.index(first)])
