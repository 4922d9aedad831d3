"""Where a process stands among the nodes of a job, by its environment alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.common.errors import EnvironmentProblem
from harness.training.launching.place_in_job import Node, expand_nodes, node_of

if TYPE_CHECKING:
    from collections.abc import Mapping

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NNODES": "3",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[07-08],b5",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_GPUS_ON_NODE": "8",
}
SLURM_NODE = Node(rank=1, nodes=3, launcher="SLURM", host="gpu07", port=24713, job="SLURM 4711.2")
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "RANK": "9",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "29500",
}
TORCHRUN_NODE = Node(1, 2, 1, "torchrun", "gpu07", 29500, store_is_there=True, job="torchrun none 0")


@pytest.mark.parametrize(
    ("environment", "node"),
    [
        ({}, Node()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Node()),
        (SLURM, SLURM_NODE),
        # A task for each GPU: the second one of its node ends, and the first must see all GPUs.
        (
            {**SLURM, "SLURM_STEP_NUM_TASKS": "24", "SLURM_LOCALID": "1"},
            Node(1, 3, 1, "SLURM", "gpu07", 24713, job="SLURM 4711.2", gpus=8),
        ),
        (
            {**SLURM, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NODEID": "0"},
            Node(launcher="SLURM", job="SLURM 4711.2", gpus=8),
        ),
        # One task of a step with one node: a shell, or a job of one GPU.
        ({**SLURM, "SLURM_NNODES": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"}, Node()),
        (TORCHRUN, TORCHRUN_NODE),
        # torchrun within srun: it knows better.
        ({**SLURM, **TORCHRUN}, TORCHRUN_NODE),
        (
            {**TORCHRUN, "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            Node(launcher="torchrun", store_is_there=True, job="torchrun none 0"),
        ),
        # OpenMPI with one process is nobody's launcher; srun speaks PMI to its tasks.
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"}, Node()),
        ({**SLURM, "PMI_SIZE": "3"}, SLURM_NODE),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, Node()),
    ],
)
def test_the_place_of_a_process(environment: Mapping[str, str], node: Node) -> None:
    assert node_of(environment) == node


def test_a_job_script_that_forgot_srun_is_told() -> None:
    node = node_of({"SLURM_JOB_ID": "4711", "SLURM_NNODES": "2", "SLURM_NODEID": "0"})
    assert node.nodes == 1
    assert "2 nodes" in (node.note or "")
    assert "srun" in (node.note or "")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OpenMPI"),
        ({**SLURM, "OMPI_COMM_WORLD_SIZE": "2"}, "OpenMPI"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MVAPICH"),
        ({"PMI_SIZE": "2"}, "mpiexec"),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "gpu07"}, "accelerate launch"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST"),
        ({**SLURM, "SLURM_STEP_NODELIST": "gpu[07-08]"}, "names 2 nodes and the step has 3"),
        ({**SLURM, "SLURM_NODEID": "3"}, "SLURM_NODEID='3'"),
        ({**SLURM, "SLURM_NODEID": "-1"}, "no number"),
        ({**TORCHRUN, "GROUP_RANK": "two"}, "no number"),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({name: value for name, value in TORCHRUN.items() if name != "GROUP_RANK"}, "GROUP_RANK"),
    ],
)
def test_a_place_that_cannot_be_told_is_refused(environment: Mapping[str, str], says: str) -> None:
    with pytest.raises(EnvironmentProblem) as error:
        node_of(environment)
    assert says in str(error.value)
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a[01-03,07],b5", ["a01", "a02", "a03", "a07", "b5"]),
        ("login", ["login"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("c[1]-ib,d.example.org", ["c1-ib", "d.example.org"]),
    ],
)
def test_lists_of_nodes(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


NO_LISTS = ["", ",", "a,", "a,,b", "a[", "a]", "a[]", "a[1-]", "a[3-1]", "a[x]", "a[[1]]", ",a", "a[0-99999999]"]


@pytest.mark.parametrize("text", NO_LISTS)
def test_what_is_no_list_of_nodes_is_refused(text: str) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be read"):
        expand_nodes(text)


@st.composite
def written_lists(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A list as SLURM writes it, and the names it stands for."""
    parts, names = [], []
    for _ in range(draw(st.integers(1, 4))):
        stem = draw(st.from_regex(r"[a-z][a-z0-9-]{0,4}[a-z]", fullmatch=True))
        ranges = draw(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 9), st.integers(1, 4)), max_size=3))
        if not ranges:
            parts.append(stem)
            names.append(stem)
            continue
        items = []
        for first, more, width in ranges:
            last = first + more
            items.append(f"{first:0{width}d}-{last:0{width}d}" if more else f"{first:0{width}d}")
            names += [f"{stem}{number:0{len(f'{first:0{width}d}')}d}" for number in range(first, last + 1)]
        parts.append(f"{stem}[{','.join(items)}]")
    return ",".join(parts), names


@given(written_lists())
def test_every_list_is_expanded(written: tuple[str, list[str]]) -> None:
    text, names = written
    assert expand_nodes(text) == names


@given(st.text("ab01[],-", max_size=12))
def test_any_text_is_a_list_or_refused(text: str) -> None:
    try:
        names = expand_nodes(text)
    except EnvironmentProblem:
        return
    assert names
    assert not any(set(name) & set("[],") for name in names)
