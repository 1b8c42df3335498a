"""VOC's annotations: what is taken from them, and what a stranger's file cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress_ssl.refusal import Refusal
from compress_ssl.voc_layout import (
    Object,
    classes_of,
    halves,
    image_paths,
    read_annotation,
    read_annotations,
    require_voc,
    targets,
)

DOG = "<object><name>dog</name><difficult>1</difficult><bndbox><xmin>48</xmin><ymin>240.5</ymin><xmax>195</xmax>\
<ymax>371</ymax></bndbox></object>"


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "000001.xml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_objects_with_boxes_and_difficulty(tmp_path: Path) -> None:
    """A box off by a pixel, or a difficult object that counts, is another benchmark."""
    person = """<object><name> person </name><pose>Left</pose><truncated>1</truncated>
        <part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>
        <bndbox><xmax>10</xmax><xmin>8</xmin><ymin>12</ymin><ymax>352</ymax></bndbox></object>"""
    file = written(tmp_path, f"<annotation><filename>000001.jpg</filename>{DOG}{person}</annotation>")
    assert read_annotation(file) == (
        Object("dog", (47, 239.5, 195, 371), True),
        Object("person", (7, 11, 10, 352), False),
    )


def test_a_picture_may_hold_nothing(tmp_path: Path) -> None:
    """Backgrounds, which tools write too, would end the reading."""
    assert read_annotation(written(tmp_path, "<annotation/>")) == ()


BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>'
READER = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("text", [BOMB, READER, "<!DOCTYPE annotation><annotation/>"])
def test_a_document_type_is_refused(tmp_path: Path, text: str, encoding: str) -> None:
    """A stranger's annotation could fill the memory, or read a file of this machine."""
    with pytest.raises(Refusal, match=r"expected XML without a document type in .*000001\.xml"):
        read_annotation(written(tmp_path, text.encode(encoding)))


# fmt: off
BAD_ANNOTATIONS = [
    ("", "expected XML in .*no element found"),
    ("<annotation><object></annotation>", "expected XML in .*mismatched tag"),
    ("<annotation>&unknown;</annotation>", "expected XML in .*undefined entity"),
    (b"<?xml version='1.0' encoding='no-such'?><annotation/>", "expected XML in .*encoding"),
    (f"<annotation>{DOG.replace('dog', '')}</annotation>", "expected a name for every object"),
    (f"<annotation>{DOG.replace('195', 'wide')}</annotation>", "expected a number as bndbox/xmax .*'wide'"),
    (f"<annotation>{DOG.replace('195', 'nan')}</annotation>", "expected a number as bndbox/xmax .*'nan'"),
    (f"<annotation>{DOG.replace('xmin>', 'x>')}</annotation>", "expected a number as bndbox/xmin .*''"),
    (f"<annotation>{DOG.replace('195', '47')}</annotation>", "expected xmin <= xmax"),
    (f"<annotation>{DOG.replace('t>1<', 't>maybe<')}</annotation>", "<difficult> to be 0 or 1 .*'maybe'"),
]
# fmt: on


@pytest.mark.parametrize(("text", "told"), BAD_ANNOTATIONS)
def test_a_bad_annotation_is_named_in_one_sentence(tmp_path: Path, text: str | bytes, told: str) -> None:
    """Of ten thousand files nobody would find the bad one from a stack trace."""
    with pytest.raises(Refusal, match=told) as refusal:
        read_annotation(written(tmp_path, text))
    assert "000001.xml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_annotation_is_named(tmp_path: Path) -> None:
    """Its picture would count as one without any object."""
    with pytest.raises(Refusal, match=r"expected an annotation at .*Annotations/a\.xml, got none"):
        read_annotations(tmp_path, ["a"])


def test_a_class_seen_only_with_difficulty_does_not_count() -> None:
    """A picture would be held against whoever finds the class in it, or against whoever does not."""
    clear, difficult = Object("cat", (0, 0, 1, 1), False), Object("cat", (0, 0, 1, 1), True)
    dog = Object("dog", (0, 0, 1, 1), False)
    found = targets([(clear, difficult, dog), (difficult, clear), (difficult,), (), (dog, dog)], ("bird", "cat", "dog"))
    assert found.dtype == np.int8
    assert found.tolist() == [[-1, 1, 1], [-1, 1, -1], [-1, 0, -1], [-1, -1, -1], [-1, -1, 1]]


def test_classes_are_the_names_of_all_objects() -> None:
    """A class of the test split alone would have no column, or every run another order."""
    one, other = Object("sofa", (0, 0, 1, 1), False), Object("car", (0, 0, 1, 1), True)
    assert classes_of({"a": (one, one), "b": (), "c": (other,)}) == ("car", "sofa")


def lists(root: Path, **splits: str) -> Path:
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for name, ids in splits.items():
        (root / "ImageSets/Main" / f"{name}.txt").write_text("\n".join(ids.split()))
    return root


def test_what_is_reported_is_not_chosen_on(tmp_path: Path) -> None:
    """Options chosen on the reported pictures make every number too high."""
    whole = halves(lists(tmp_path / "a", train="a b", val="c", trainval="a b c", test="d e"))
    assert (whole.learn, whole.report) == (("a", "b", "c"), ("d", "e"))
    assert (whole.choose_from, whole.choose_on) == (("a", "b"), ("c",))
    assert halves(lists(tmp_path / "b", train="a b", val="c", test="d")).learn == ("a", "b", "c")
    whole = halves(lists(tmp_path / "c", train="a b", val="c"))
    assert (whole.learn, whole.report, whole.choose_on) == (("a", "b"), ("c",), ())
    whole = halves(lists(tmp_path / "d", trainval="a b", test="c"))
    assert (whole.learn, whole.report, whole.choose_on) == (("a", "b"), ("c",), ())
    whole = halves(lists(tmp_path / "e", train="a b", test="c"))
    assert (whole.learn, whole.report, whole.choose_on) == (("a", "b"), ("c",), ())


def test_the_folder_that_was_meant_is_named(tmp_path: Path) -> None:
    """Everybody names VOCdevkit first."""
    lists(tmp_path / "VOCdevkit" / "VOC2007", trainval="a", test="b")
    with pytest.raises(Refusal, match=r"did you mean .*VOCdevkit/VOC2007\?"):
        require_voc(tmp_path / "VOCdevkit")
    with pytest.raises(Refusal, match="name the folder VOC2007"):
        require_voc(tmp_path / "nowhere")


def test_of_two_files_of_one_id_the_jpg_is_the_picture(tmp_path: Path) -> None:
    """Which one is read would depend on the file system."""
    root = lists(tmp_path, trainval="a b c", test="d")
    for name in ("a.png", "a.jpg", "a.txt", "b.webp", "b.png", "c.txt"):
        (root / "JPEGImages" / name).touch()
    assert image_paths(root, ["a", "b", "c"]) == ["JPEGImages/a.jpg", "JPEGImages/b.png", "JPEGImages/c.jpg"]
