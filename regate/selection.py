"""The selection methods: what ranks a sample's candidates (Eq. 3), with the ablations and the controls.

A method is one entry of `SELECTIONS`: a label and a score function. The function names the signals that it reads as
its parameters, so what the gate keeps, what it passes, and whether a teacher is needed follow from the function.
Scores are arithmetic on tensors and need no torch here, so that a recipe is checked and planned without importing it.
A score function of the caller's own is used in the same way without an entry here: `own_method` makes its method.

Legend: B rows, S expanded length. Every score is float32 BS; only candidate positions are read.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from regate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

Combine = Literal["sum", "convex"]

SIGNALS: Mapping[str, str] = {
    "difficulty_BS": "m of Eq. 2, the student's running loss of earlier visits, nats",
    "loss_BS": "the student's last loss, nats: of this step with `execution: loss_only`, else of an earlier visit",
    "reference_BS": "l_ref of Eq. 1, nats; None for a score that also reads the weight, where the weight is 0",
    "weight": "lambda of Eq. 3",
    "combine": "how Eq. 3 is read",
    "random_BS": "uniform in [0, 1), drawn from the seed, the step and the sample",
    "position_BS": "position in the row, from 0",
}
"""What a score function may name as its parameters."""


@dataclass(frozen=True, slots=True)
class SelectionMethod:
    """A way to rank candidates; the highest scores stay.

    Attributes:
        label: name in tables and figures.
        score: its parameters are some of `SIGNALS`.
        origin: function and file of a score of the caller's own, whose results are checked; None for those here.

    Raises:
        ConfigError: a parameter is no signal, or the score reads both the running and the last loss, of which a
            difficulty store keeps one.
    """

    label: str
    score: Callable[..., Tensor]
    origin: str | None = None
    signals: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        signals = tuple(inspect.signature(self.score).parameters)
        unknown = [name for name in signals if name not in SIGNALS]
        if unknown:
            raise ConfigError(
                f"selection {self.label}: its score reads {', '.join(unknown)}; "
                f"a score may read {', '.join(SIGNALS)}"
            )
        if {"difficulty_BS", "loss_BS"} <= set(signals):
            raise ConfigError(
                f"selection {self.label}: a difficulty store keeps the running loss or the last one; its score may "
                "read difficulty_BS or loss_BS, not both"
            )
        object.__setattr__(self, "signals", signals)

    @property
    def description(self) -> str:
        """First line of the score's docstring."""
        return (self.score.__doc__ or "").strip().split("\n")[0]

    @property
    def reads_student_loss(self) -> bool:
        """Whether the score reads the student's losses, running or last."""
        return "difficulty_BS" in self.signals or "loss_BS" in self.signals

    def reads_reference(self, weight: float) -> bool:
        """Whether the score reads the reference losses at this lambda; at 0 a weighted one does not."""
        return "reference_BS" in self.signals and not ("weight" in self.signals and weight == 0.0)


def sum_of_losses(difficulty: Tensor, reference: Tensor, weight: float) -> Tensor:
    """Eq. 3 as printed: d = m + lambda l_ref."""
    return difficulty + weight * reference


def convex_sum(difficulty: Tensor, reference: Tensor, weight: float) -> Tensor:
    """d = (1 - lambda) m + lambda l_ref: the reading under which lambda = 1 is "reference loss only" (Table 5)."""
    return (1.0 - weight) * difficulty + weight * reference


COMBINE: Mapping[Combine, Callable[[Tensor, Tensor, float], Tensor]] = {
    "sum": sum_of_losses,
    "convex": convex_sum,
}


def regate_score(difficulty_BS: Tensor, reference_BS: Tensor | None, weight: float, combine: Combine) -> Tensor:
    """Eq. 3: the student's running loss and the reference loss; at lambda = 0 every reading is the running loss."""
    return difficulty_BS if reference_BS is None else COMBINE[combine](difficulty_BS, reference_BS, weight)


def reference_score(reference_BS: Tensor) -> Tensor:
    """The reference loss alone: the ablation without the student's running loss."""
    return reference_BS


def difficulty_score(difficulty_BS: Tensor) -> Tensor:
    """The student's running loss alone: the ablation without a teacher."""
    return difficulty_BS


def loss_score(loss_BS: Tensor) -> Tensor:
    """The student's last loss."""
    return loss_BS


def excess_score(loss_BS: Tensor, reference_BS: Tensor) -> Tensor:
    """The student's last loss minus the reference loss: the score of RHO-1 (arXiv 2404.07965)."""
    return loss_BS - reference_BS


def random_order(random_BS: Tensor) -> Tensor:
    """A random order for each seed, step and sample: the control at the same budget."""
    return random_BS


def first_positions(position_BS: Tensor) -> Tensor:
    """The first candidates of the row: the control by position."""
    return -position_BS


SELECTIONS: Mapping[str, SelectionMethod] = {
    "regate": SelectionMethod("ReGATE", regate_score),
    "reference": SelectionMethod("reference loss only", reference_score),
    "difficulty": SelectionMethod("difficulty only", difficulty_score),
    "loss": SelectionMethod("own loss", loss_score),
    "excess": SelectionMethod("excess loss", excess_score),
    "random": SelectionMethod("random", random_order),
    "first": SelectionMethod("first targets", first_positions),
}
"""By the value of `gate.selection`, whose choices these are."""


def own_method(score: Callable[..., Tensor]) -> SelectionMethod:
    """The method of a score function of the caller's own.

    Args:
        score: declares the signals that it reads by its parameters, as the functions of this module do, and returns
            float32 BS, finite at every candidate.

    Raises:
        ConfigError: it reads no signal, or something that is none.
    """
    name = str(getattr(score, "__qualname__", type(score).__name__))
    code = getattr(score, "__code__", None)
    origin = f"{name} of {code.co_filename}" if code is not None else name
    try:
        parameters = inspect.signature(score).parameters
    except (TypeError, ValueError):
        raise ConfigError(f"selection {origin}: its parameters cannot be read; give a Python function") from None
    if not parameters:
        raise ConfigError(f"selection {origin}: its score reads nothing; a score may read {', '.join(SIGNALS)}")
    try:
        return SelectionMethod(name, score, origin)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"selection {name}:", f"selection {origin}:", 1)) from None


def method_of(selection: str | SelectionMethod) -> SelectionMethod:
    """The method of a name; a method stands for itself.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(selection, SelectionMethod):
        return selection
    if selection not in SELECTIONS:
        lines = "".join(f"\n  {name}: {method.description}" for name, method in SELECTIONS.items())
        raise ConfigError(f"selection is {selection}, not one of{lines}")
    return SELECTIONS[selection]


__all__ = ["COMBINE", "SELECTIONS", "SIGNALS", "Combine", "SelectionMethod", "method_of", "own_method"]
