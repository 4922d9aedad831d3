"""A part of the data: the same whatever the order of the files, nested, and of the size that was asked for."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from harness.common.errors import DataError
from harness.config.data import Subset
from harness.data.formats import File, Row
from harness.data.media_folders import MediaFolders
from harness.data.packed import PackedSamples, Rows
from harness.data.sample import Turn
from harness.data.subset import take


def _rows(count: int, order: int | None = None) -> Rows:
    """Row i has i % 3 + 1 pairs."""
    rows = Rows("test")
    numbers = list(range(count))
    if order is not None:
        random.Random(order).shuffle(numbers)
    for number in numbers:
        turns = (Turn("user", "Q"), Turn("assistant", "A")) * (number % 3 + 1)
        rows.add(Row(f"r{number}", (File("image", f"{number}.jpg"),), turns), origin=number % 5)
    return rows


def _keys(rows: Rows) -> set[str]:
    return {rows.key(place) for place in range(len(rows))}


def test_it_does_not_depend_on_the_order_of_the_files() -> None:
    one, words = take(_rows(300), Subset(size=100))
    other, again = take(_rows(300, order=4), Subset(size=100))
    assert _keys(one) == _keys(other)
    assert words == again == "100 of 300 samples, drawn by seed 0"
    assert _keys(take(_rows(300), Subset(size=100, seed=1))[0]) != _keys(one)


def test_a_smaller_part_is_within_a_larger_one() -> None:
    parts = [_keys(take(_rows(300), Subset(size=size))[0]) for size in (1, 50, 299, 300)]
    assert [len(part) for part in parts] == [1, 50, 299, 300]
    assert all(small < large for small, large in pairwise(parts))


def test_pairs_are_counted_and_never_exceeded() -> None:
    whole = _rows(300)
    for size in (1, 2, 57, 599, 600):
        part, words = take(whole, Subset(size=size, unit="pairs"))
        assert size - 2 <= int(part.pairs.sum()) <= size
        assert f"with {int(part.pairs.sum())} of 600 pairs" in words


def test_what_a_row_brings_goes_with_it() -> None:
    part, _ = take(_rows(30), Subset(size=7))
    for place in range(len(part)):
        number = int(part.key(place)[1:])
        assert part.files(place) == (f"{number}.jpg",)
        assert int(part.pairs[place]) == number % 3 + 1
    named = {(origin, name) for origin, names in part.media().items() for name in names}
    assert named == {(int(key[1:]) % 5, f"{key[1:]}.jpg") for key in _keys(part)}
    assert {s.key for s in PackedSamples(MediaFolders(Path()), part)} == _keys(part)


@pytest.mark.parametrize(("size", "unit", "there"), [(301, "samples", 300), (601, "pairs", 600)])
def test_more_than_there_is_is_refused(size: int, unit: str, there: int) -> None:
    with pytest.raises(DataError, match=rf"asks for {size} {unit}, and the annotations hold {there}") as caught:
        take(_rows(300), Subset.model_validate({"size": size, "unit": unit}))
    assert "data.subset=null" in (caught.value.hint or "")
