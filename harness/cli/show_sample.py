"""The answer of `data show`: one sample as the model gets it, in the terminal, as a contact sheet and as HTML.

Legend: N pictures, S expanded length, H and W pixels.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError, EnvironmentProblem
from harness.common.files import write_atomic
from harness.common.numbers import percent
from harness.config.explain import nearest
from harness.data.records import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.sample import Encoded, Sample
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter

_COLOURS: Final = {"special": "#888", "prompt": "#05a", "target": "#063", "visual": "#a50"}
_WIDEST: Final = 4
"""Pictures in a row of the contact sheet."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample in words and pictures.

    Attributes:
        tokens: (text, kind, is learned, is kept or None where that is not known) of each position.
        sheet: PNG of the pictures, None for a sample without media.
        choice: how it was decided what is kept, or why it is not known.
    """

    sample: Sample
    tokens: tuple[tuple[str, str, bool, bool | None], ...]
    sheet: bytes | None
    choice: str


def show_sample(recipe: Recipe, key: str | None, progress: Progress) -> list[str]:
    """Lines for the terminal; the files that they name are written to the folder `samples` below paths.results.

    Args:
        key: the sample's key, with or without its file's name, or its id; None takes the first one.

    Raises:
        DataError: there is no such sample, or its media cannot be read.
        EnvironmentProblem: the model's files are not there.
    """
    from harness.models import adapter_for
    from harness.plan import Planner

    planner = Planner()
    data = planner.open_data(recipe)
    adapter = adapter_for(recipe, data)
    if adapter.missing():
        raise EnvironmentProblem(
            f"{recipe.name}: the model's tokenizer is not there: {adapter.missing()[0]}",
            hint="run `harness prepare` first: it makes what can be made and names the rest",
        )
    sample = _find(data, key)
    shown = _shown(recipe, data, adapter, sample, progress)
    base = Path(recipe.paths.results) / "samples" / f"{recipe.name}-{sample.id}"
    files = [base.with_suffix(".html")]
    write_atomic(files[0], _page(recipe, shown))
    if shown.sheet is not None:
        files.append(base.with_suffix(".png"))
        write_atomic(files[1], shown.sheet)
    return [*_lines(shown), *(str(file) for file in files)]


def _find(data: DataSet, key: str | None) -> Sample:
    if key is None:
        return data.samples[0]
    for sample in data.samples:
        if key in (sample.key, str(sample.id), sample.key.partition("#")[2]):
            return sample
    left_out = dict(data.excluded)
    if key in left_out:
        raise DataError(f"sample {short(key)} is left out: {left_out[key]}")
    hint = nearest(key, [sample.key for sample in data.samples[:5000]])
    raise DataError(f"there is no sample {short(key)}{hint}")


def _shown(recipe: Recipe, data: DataSet, adapter: Adapter, sample: Sample, progress: Progress) -> Shown:
    from harness.data.loading.batches import load
    from harness.data.loading.epoch_view import EpochView
    from regate.types import Kind

    row = load(sample, data, adapter.processor(), EpochView(recipe.seed, 0))
    if row.failed:
        raise DataError(f"sample {short(sample.key)}: its media cannot be read", hint="`harness data check` says why")
    kept, choice = _kept(recipe, data, adapter, sample, progress)
    tokenizer = adapter.processor().tokenizer
    tokens = []
    before: int | None = None
    for place, (token, kind, label) in enumerate(
        zip(row.input_ids_S.tolist(), row.kind_S.tolist(), row.labels_S.tolist(), strict=True)
    ):
        name = Kind(kind).name.lower()
        text = "" if name == "visual" else _text_behind(tokenizer, before, token)
        before = None if name == "visual" else token
        ordinal = int(row.ordinal_S[place])
        tokens.append((text, name, label >= 0, None if kept is None or ordinal < 0 else kept[ordinal]))
    return Shown(sample, tuple(tokens), _sheet(row), choice)


def _text_behind(tokenizer: Any, before: int | None, token: int) -> str:
    """A token as it stands in the text: most tokenizers write the space before a word only behind another token."""
    if before is None:
        return str(tokenizer.decode([token]))
    both, first = tokenizer.decode([before, token]), tokenizer.decode([before])
    return str(both.removeprefix(first) if both.startswith(first) else tokenizer.decode([token]))


def _kept(
    recipe: Recipe, data: DataSet, adapter: Adapter, sample: Sample, progress: Progress
) -> tuple[list[bool] | None, str]:
    """Which targets a sparse step would keep, by ordinal, and how that was decided."""
    from harness.plan import make_plan
    from harness.records.run_folder import run_dir_of
    from harness.training.run import Prepared
    from harness.training.stores.gate_stores import reference_place

    if recipe.gate is None:
        return None, "no gate: every target is computed"
    place = reference_place(Prepared(recipe, make_plan(recipe), data, adapter, run_dir_of(recipe), progress))
    if place is None or not place.complete:
        return None, "what the gate would keep is not known: there are no reference losses (`harness reference`)"
    import regate
    from regate.candidates import candidates_of, in_order
    from regate.top_k import top_k

    store = regate.ReferenceStore.open(place.path, expect_fingerprint=place.made_from)
    batch = adapter.processor().collate([adapter.processor().encode(sample, None)])
    candidates = candidates_of(batch.layout, recipe.gate.candidates)
    losses_BS = store.losses_at(candidates, batch.sample_ids_B)
    kept_BS = top_k(losses_BS, candidates.mask_BS, recipe.gate.keep_ratio)
    ratio = percent(recipe.gate.keep_ratio, 0)
    return in_order(candidates, kept_BS)[0].bool().tolist(), f"kept: {ratio} of the targets by reference loss alone"


def _sheet(row: Encoded) -> bytes | None:
    """PNG of the pictures that the vision tower reads, four in a row."""
    from PIL import Image

    if row.pixels is None:
        return None
    pictures_N3HW = row.pixels.reshape(-1, *row.pixels.shape[-3:])
    count, _, height, width = pictures_N3HW.shape
    columns = min(count, _WIDEST)
    sheet = Image.new("RGB", (columns * (width + 2), math.ceil(count / columns) * (height + 2)), "white")
    for place, picture_3HW in enumerate(pictures_N3HW):
        y, x = divmod(place, columns)
        image = Image.fromarray(picture_3HW.permute(1, 2, 0).contiguous().numpy())
        sheet.paste(image, (x * (width + 2) + 1, y * (height + 2) + 1))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _runs(shown: Shown) -> list[tuple[str, int, str]]:
    """(kind, positions, text) of positions of one kind behind each other."""
    runs = []
    for kind, tokens in groupby(shown.tokens, key=lambda token: token[1]):
        group = list(tokens)
        runs.append((kind, len(group), "".join(text for text, *_ in group)))
    return runs


def _lines(shown: Shown) -> list[str]:
    learned = sum(is_learned for _, _, is_learned, _ in shown.tokens)
    media = [f"{media.kind} {short(media.path.name)}{_part(media)}" for media in shown.sample.media]
    lines = [f"sample {short(shown.sample.key)} (id {shown.sample.id}): {', '.join(media) or 'no media'}"]
    lines.append(f"  {len(shown.tokens)} positions, {learned} of them learned; {shown.choice}")
    for kind, count, text in _runs(shown):
        lines.append(f"  {kind:<8} {count:>5}  {text!r}" if text else f"  {kind:<8} {count:>5}")
    known = [is_kept for *_, is_kept in shown.tokens if is_kept is not None]
    if known:
        words = [text.strip() for text, *_, is_kept in shown.tokens if is_kept]
        lines.append(f"  kept     {sum(known):>5}  {' | '.join(words)!r}")
    return lines


def _part(media: Any) -> str:
    return "" if media.start is None and media.end is None else f", from {media.start} s to {media.end} s"


def _page(recipe: Recipe, shown: Shown) -> str:
    """One HTML file without scripts or other files."""
    title = escape(f"{recipe.name}: sample {short(shown.sample.key)}")
    picture = ""
    if shown.sheet is not None:
        picture = f'<img alt="pictures" src="data:image/png;base64,{base64.b64encode(shown.sheet).decode()}">'
    legend = " ".join(f'<span style="color:{colour}">{kind}</span>' for kind, colour in _COLOURS.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto}b{background:#cfc}s{color:#999}</style>"
        f"<h1>{title}</h1><p>{escape(_lines(shown)[0])}</p><p>{escape(shown.choice)}; targets that are kept are "
        f"<b>marked</b>, elided ones <s>struck</s>.</p>{picture}<p>{legend}</p><p>{_spans(shown.tokens)}</p></html>\n"
    )


def _spans(tokens: Sequence[tuple[str, str, bool, bool | None]]) -> str:
    parts = []
    for (kind, kept), group in groupby(tokens, key=lambda token: (token[1], token[3])):
        texts = [text for text, *_ in group]
        text = escape("".join(texts)).replace("\n", "↵<br>") if kind != "visual" else f"[{len(texts)} visual tokens]"
        tag = {True: "b", False: "s", None: "span"}[kept]
        parts.append(f'<{tag} style="color:{_COLOURS[kind]}" title="{kind}">{text}</{tag}>')
    return "".join(parts)
