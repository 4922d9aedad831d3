"""What may not stand in any file of the repository."""

from __future__ import annotations

import re

import pytest

from .tree import ROOT, tracked

# Written in pieces, so that this file does not find itself.
FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.])/(?:root|work|home|Users|mnt|data[0-9])" + r"/[\w.]",
    "an index of packages": r"pypi\." + r"org|pythonhosted\." + r"org|download\.pytorch\." + r"org",
    "an index option": r"--(?:extra-)?index" + r"-url|--find" + r"-links|--trusted" + r"-host",
    "a key": r"(?:hf_|ghp_|sk-)[A-Za-z0-9]" + r"{24,}|BEGIN [A-Z ]*PRIVATE " + r"KEY",
}
SUFFIXES = {
    "",
    ".py",
    ".md",
    ".yaml",
    ".yml",
    ".toml",
    ".txt",
    ".ini",
    ".cfg",
    ".json",
    ".jsonl",
    ".csv",
    ".svg",
    ".sh",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    matches = []
    for path in tracked():
        if path.suffix in SUFFIXES:
            match = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
            if match:
                matches.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert not matches


def test_heavy_files_are_not_tracked() -> None:
    heavy = [str(path.relative_to(ROOT)) for path in tracked() if path.stat().st_size > 3_000_000]
    assert not heavy


def test_the_licence_is_the_whole_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert len(text) == 11357
    assert text.lstrip().startswith("Apache License")
    assert text.rstrip().endswith("limitations under the License.")


def test_the_constraints_pin_every_dependency() -> None:
    """Each distribution of pyproject.toml at one version, and nothing but pins."""
    import tomllib

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            assert re.fullmatch(r"[A-Za-z0-9._-]+", name), line
            assert re.fullmatch(r"[0-9][\w.+!-]*", version), line
            pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["hf"], *extras["harness"], *extras["test"], *extras["dev"]]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[ ]", line)[0]).lower() for line in wanted} - {"regate"}
    assert names <= set(pins)
