"""Reports: everything of the records is there, escaped, in one file that asks nothing of a network."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from harness.analysis.arms import group_by_arm
from harness.analysis.choices.selection import runs_to_replay
from harness.analysis.option_loss import mean_option_loss
from harness.analysis.runs import difference_of_means, load_runs, mean_of_tasks, pair_runs
from harness.cli.report import make_figures, make_reports
from harness.common.errors import DataError, RecipeError
from harness.common.progress import Progress
from harness.config.suite import Suite
from harness.report import table as render
from harness.report.pages.build import make_page, write_report
from harness.report.pages.html import inline_svg
from harness.report.tables.suites import claims_table
from tests.harness.worlds.run_builder import build_pair, build_run, finish, recipe

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.worlds.choices import World

QUIET = Progress(quiet=True)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Read(HTMLParser):
    """The text, tags, ids and targets of a page; unclosed or wrongly nested tags are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def check_page(page: str) -> Read:
    """What every page must be: whole, offline, without scripts, with ids that are its own and links that lead."""
    assert page.startswith("<!DOCTYPE html>")
    read = Read(page)
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, value)
                assert not value.startswith("#") or value[1:] in ids
        for local in re.findall(r"url\(#([^)]+)\)", " ".join(value or "" for value in attributes.values())):
            assert local in ids
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-labelledby"] in ids
    assert not re.search(r"https?://|@import|url\((?!#)", page), "nothing is fetched"
    return read


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    build_pair(folder, "demo", description='<script>alert("1")</script> & more')
    return folder


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    for arm, gate, skill in (("baseline", False, 1.2), ("regate", True, 1.1), ("keep25", {"keep_ratio": 0.25}, 1.0)):
        for seed in (0, 1):
            asked = recipe(folder, f"demo.{arm}.seed{seed}", gate=gate, seed=seed)
            run_dir = build_run(asked, skill=skill + 0.1 * seed, noise=seed)
            record = {**finish(asked, run_dir), "suite": {"name": "demo", "arm": arm}}
            (run_dir / "record.json").write_text(json.dumps(record))
    return folder


def test_a_pair_shows_what_its_records_say(results: Path) -> None:
    runs = load_runs(results)
    path = write_report(results, runs)
    assert path == results / "reports" / f"pair-{runs[1].id}.html"
    read = check_page(path.read_text())
    (pair,) = pair_runs(runs)
    for run in runs:
        last = run.last("shapes")
        assert last is not None
        assert render.accuracy(mean_of_tasks(last, run.items(last))).text in read.text
        loss = mean_option_loss(run, last)
        assert loss is not None
        assert f"{loss:.3f}" in read.text
        for kind in ("visual", "prompt", "special", "target", "active", "scored"):
            assert f"{run.totals['counts'][kind]:,}" in read.text
        assert render.duration(run.totals["seconds"]["train"]).text in read.text
        assert run.id in read.text
        assert render.percent(run.totals["targets_reduction"]).text in read.text or run.gate is None
    assert render.accuracy(difference_of_means(pair, "shapes"), signed=True).text in read.text
    for fact in ("Builder CPU", "2.15.0", "p (exact McNemar)", "of them visual", "reduction by the schedule (Eq. 4)"):
        assert fact in read.text
    assert "learning rate 0.002 0.002 samples of a step (global batch) 16 16 length 40 steps 40 steps" in read.text
    assert read.text.count("mean accuracy (%)") == 2, "two figures, as text"


def test_a_suites_differences_leave_out_seeds_that_were_asked_otherwise(suite: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(suite, results)
    runs = load_runs(results)
    changed = next(run for run in runs if run.suite == ("demo", "regate") and run.seed == 1)
    record = json.loads(json.dumps(changed.record))
    record["evaluations"][-1]["prompt_hash"] = "0" * 64
    (changed.folder / "record.json").write_text(json.dumps(record))
    page = write_report(results, load_runs(results)).read_text()
    read = check_page(page)
    assert "Left out, because the two were asked otherwise: ReGATE, seed 1." in read.text
    assert "of 1 seeds" in read.text
    assert "asked otherwise" not in check_page(write_report(suite, load_runs(suite)).read_text()).text


def test_text_of_records_is_escaped(results: Path) -> None:
    page = write_report(results, load_runs(results)[:1]).read_text()
    assert "<script" not in page
    assert '<script>alert("1")</script> & more' in check_page(page).text


def test_the_same_records_are_the_same_bytes(results: Path) -> None:
    runs = load_runs(results)
    first = write_report(results, runs).read_bytes()
    assert write_report(results, load_runs(results)).read_bytes() == first


def test_one_run_is_a_report_of_its_own(results: Path) -> None:
    run = load_runs(results)[1]
    path = write_report(results, [run])
    assert path.name == f"{run.id}.html"
    text = check_page(path.read_text()).text
    assert "selection ReGATE" in text
    assert "keep_ratio: 0.5" in text, "the recipe as YAML"
    assert "minus its baseline" not in text
    with pytest.raises(ValueError, match="at least one run"):
        write_report(results, [])


def test_a_suite_compares_its_arms_within_a_seed(suite: Path) -> None:
    runs = load_runs(suite)
    name, _ = make_page(runs)
    assert name == "suite-demo"
    read = check_page(write_report(suite, runs).read_text())
    last = {run.name: mean_of_tasks(entry, run.items(entry)) for run in runs if (entry := run.last("shapes"))}
    values = {key: interval.value for key, interval in last.items() if interval is not None}
    for value in values.values():
        assert f"{100 * value:.1f}" in read.text
    shared = [values[f"demo.regate.seed{seed}"] - values[f"demo.baseline.seed{seed}"] for seed in (0, 1)]
    mean = 100 * sum(shared) / 2
    assert re.search(
        rf"ReGATE {re.escape(f'{mean:+.1f}')} \[[^]]+\] {sum(v > 0 for v in shared)} of 2 seeds", read.text
    )
    assert "Difference from baseline" in read.text
    assert "ReGATE, keep 0.25" in read.text
    assert "cross entropy of the right option on shapes" in read.text
    assert all(run.id in read.text for run in runs)
    assert [run.name for run in runs_to_replay(runs)] == ["demo.regate.seed0"], "one is enough to look at"


def test_a_suites_report_begins_with_its_claims(suite: Path) -> None:
    claim = {"text": "The gate costs no more than a point.", "first": "regate", "second": "baseline"}
    arms = {arm: {"recipe": "tiny_regate"} for arm in ("baseline", "regate", "keep25")}
    claims = (
        {"id": "kept", **claim, "expect": "not_worse", "margin": 0.01},
        {"id": "won", **claim, "text": "It wins.", "expect": "better"},
    )
    asked = {"suite": "demo", "description": "Why.", "seeds": (0, 1), "baseline": "baseline"}
    definition = Suite.model_validate({**asked, "arms": arms, "claims": claims})
    runs = load_runs(suite)
    _, page = make_page(runs, {"demo": definition})
    assert [section.title for section in page.sections][:2] == ["Claims", "Accuracy on shapes"]
    (tabular,) = page.sections[0].blocks
    table = claims_table(group_by_arm("demo", runs, definition), definition.claims, ["shapes"])
    verdicts = [row[-1].text for row in table.rows]
    shown = tabular.table
    assert [column.title for column in shown.columns][:2] == ["claim", "verdict"], "seen in a narrow window, too"
    assert [row[1].text for row in shown.rows] == verdicts
    assert [(row[0], *row[2:], row[1]) for row in shown.rows] == list(table.rows)
    assert shown.notes == table.notes
    tiles = {tile.label: tile.value for tile in page.tiles}
    assert {word: tiles[f"claims {word}"] for word in verdicts} == {w: str(verdicts.count(w)) for w in verdicts}
    read = check_page(write_report(suite, runs, {"demo": definition}).read_text())
    assert read.text.index("The gate costs no more than a point.") < read.text.index("What each arm computed")
    assert "claims " not in check_page(write_report(suite, runs).read_text()).text, "without a definition, no claim"


def test_the_choices_of_a_run_are_part_of_its_report(choice_world: World) -> None:
    paths = [f"paths.{name}={place}" for name, place in choice_world.recipe.paths.model_dump().items()]
    (path,) = make_reports([choice_world.run.id[:9], *paths], QUIET)
    read = check_page(path.read_text())
    assert sum(tag == "ruby" for tag, _ in read.tags) > 40
    assert sum(tag == "img" for tag, _ in read.tags) == 4
    assert "word that only the picture tells" in read.text
    assert "Targets left out, by kind of word" in read.text
    assert "reference loss alone and epoch 3" in read.text
    figures = {place.name for place in make_figures(paths, [], QUIET)}
    assert f"reference_loss_{choice_world.run.id}.svg" in figures
    assert f"selection_overlap_{choice_world.run.id}.csv" in figures


def test_runs_are_named_by_id_suite_or_recipe(suite: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = f"paths.results={suite}"
    (whole,) = make_reports(["demo", place], QUIET)
    assert whole.name == "suite-demo.html"
    (everything,) = make_reports([place], QUIET)
    assert everything == whole
    pair = make_reports(["demo.baseline.seed0", "demo.regate.seed0", place], Progress())
    assert pair[0].name.startswith("pair-demo.regate.seed0-")
    assert "its choices cannot be replayed: its reference losses are not here" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="is the beginning of several runs"):
        make_reports(["demo.", place], QUIET)
    with pytest.raises(RecipeError, match=r"no run below .*, no suite and no recipe"):
        make_reports(["nothing", place], QUIET)
    with pytest.raises(DataError, match="has no record"):
        make_reports(["tiny_smoke_regate", place], QUIET)
    with pytest.raises(DataError, match="no finished run of suite tiny_claim"):
        make_reports(["tiny_claim", place], QUIET)
    with pytest.raises(DataError, match="no finished run"):
        make_reports([f"paths.results={results / 'none'}"], QUIET)


def test_an_inline_figure_keeps_to_itself() -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 24 12">'
        "<metadata>who</metadata><style>*{fill: red}</style>"
        '<defs><path id="a" d="M0 0"/></defs><use xlink:href="#a" clip-path="url(#a)" '
        'style="fill: #0072b2; stroke: #123456"/><text>1 &lt; 2</text></svg>'
    )
    inline = inline_svg(svg, "p-", "a <b> figure")
    assert "metadata" not in inline
    assert "<style" not in inline
    assert "http" not in inline
    assert 'href="#p-a" clip-path="url(#p-a)" style="fill: var(--kept); stroke: #123456"' in inline.replace(
        "var(--arm-regate)", "var(--kept)"
    )
    assert "1 &lt; 2" in inline
    assert '<title id="p-title">a &lt;b&gt; figure</title>' in inline


def test_every_named_colour_has_a_value_in_both_schemes() -> None:
    from importlib import resources

    from harness.report.pages import html as page

    css = resources.files("harness.report").joinpath("templates/page.css").read_text()
    light, dark = css.split("prefers-color-scheme: dark", 1)
    named: dict[str, Any] = page._NAMED
    for name in named.values():
        assert f"--{name}:" in light
        assert f"--{name}:" in dark.split("* {", 1)[0]
