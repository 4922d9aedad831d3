"""What tables need to know of a suite: its arms in order, the baseline, and the claims that its runs decide.

`harness.config.suite` reads suites from YAML; here stand only the shapes of it, so that tables need no more than
that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.analysis.verdicts import Expect


class ClaimLike(Protocol):
    """A statement about two arms: score of `first` minus that of `second`, paired by seed.

    `margin` is in parts of one: how much worse still counts as not worse.
    """

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def first(self) -> str: ...
    @property
    def second(self) -> str: ...
    @property
    def expect(self) -> Expect: ...
    @property
    def margin(self) -> float: ...


class SuiteLike(Protocol):
    """A suite's definition. Iterating `arms` gives their names in the order in which they are shown."""

    @property
    def description(self) -> str: ...
    @property
    def arms(self) -> Iterable[str]: ...
    @property
    def baseline(self) -> str: ...
    @property
    def claims(self) -> Sequence[ClaimLike]: ...


__all__ = ["ClaimLike", "SuiteLike"]
