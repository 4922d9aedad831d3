"""Which node of a job this process stands on: what SLURM, torchrun or accelerate launch wrote into the environment.

Environment in, dataclass out: nothing here looks at the machine, and nothing imports torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from harness.common.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Launcher = Literal["none", "SLURM", "torchrun"]

VARIABLES: Final = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
"""What a launcher tells a process of its place: torch and accelerate would act on it."""
PREFIXES: Final = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_")
_PORTS: Final = range(20000, 32000)
"""Of the nodes' store under SLURM: below those that systems give to connections that go out."""
_MPI: Final = {"OMPI_COMM_WORLD_SIZE": "OpenMPI's mpirun", "MV2_COMM_WORLD_SIZE": "MVAPICH's mpirun"}
_PMI: Final = "PMI_SIZE"
_PART: Final = re.compile(r"([^,\[\]]*(?:\[[^\[\]]*\][^,\[\]]*)*)(?:,|$)")
_RANGE: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_MOST: Final = 100_000
"""Nodes of one range: a list with more was not written by SLURM."""


@dataclass(frozen=True, slots=True)
class Node:
    """One process's place among the nodes of a job.

    Attributes:
        rank, nodes: which node this is, and how many there are.
        local: which of the launcher's processes of this node; 0 works for the node, and the others end.
        launcher: who started it.
        host, port: where the nodes meet, on node 0; None and 0 where there is one node.
        store_is_there: the launcher keeps a store open at that port already.
        job: what tells this job's nodes from another's.
        gpus: of this node as the launcher counts them, where it gives each process its own; None where all are seen.
        note: what the user may have meant otherwise.
    """

    rank: int = 0
    nodes: int = 1
    local: int = 0
    launcher: Launcher = "none"
    host: str | None = None
    port: int = 0
    store_is_there: bool = False
    job: str = ""
    gpus: int | None = None
    note: str | None = None


def node_of(environment: Mapping[str, str]) -> Node:
    """The place that an environment tells.

    Raises:
        EnvironmentProblem: a launcher started several processes and does not tell their places, or tells nonsense.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _of_torchrun(environment)
    for name, launcher in _MPI.items():
        if _number(environment, name, 1) > 1:
            raise _not_by(launcher)
    if _number(environment, "SLURM_STEP_NUM_NODES", 1) > 1 or _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _of_slurm(environment)
    if _number(environment, _PMI, 1) > 1:
        raise _not_by("mpiexec")
    if "ACCELERATE_USE_CPU" in environment and environment.get("MASTER_ADDR", "127.0.0.1") != "127.0.0.1":
        raise EnvironmentProblem(
            "accelerate launch started this command on several machines and does not tell which one this is: it does "
            "so with --multi_gpu alone",
            hint="start it with torchrun (--nnodes 2 --nproc-per-node 1 --node-rank ..) or srun --ntasks-per-node 1",
        )
    nodes = _number(environment, "SLURM_NNODES", 1)
    note = f"SLURM gave this job {nodes} nodes, and the command runs on one of them: srun --ntasks-per-node 1 starts "
    return Node(note=note + "it on every one") if nodes > 1 and "SLURM_JOB_ID" in environment else Node()


def _of_torchrun(environment: Mapping[str, str]) -> Node:
    """torchrun, and accelerate launch, which is built on it. Its store is there unless the rendezvous keeps its own:
    then MASTER_PORT is one that node 0 found free."""
    nodes = _number(environment, "GROUP_WORLD_SIZE", 1)
    run = environment["TORCHELASTIC_RUN_ID"]
    return Node(
        rank=_place(environment, "GROUP_RANK", nodes),
        nodes=nodes,
        local=_number(environment, "LOCAL_RANK", 0),
        launcher="torchrun",
        host=_text(environment, "MASTER_ADDR") if nodes > 1 else None,
        port=_number(environment, "MASTER_PORT", 0) if nodes > 1 else 0,
        store_is_there=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        job=f"torchrun {run} {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}",
    )


def _of_slurm(environment: Mapping[str, str]) -> Node:
    nodes = _number(environment, "SLURM_STEP_NUM_NODES", 1)
    several_tasks = _number(environment, "SLURM_STEP_NUM_TASKS", nodes) > nodes
    job, step = _number(environment, "SLURM_JOB_ID", 0), _number(environment, "SLURM_STEP_ID", 0)
    names = expand_nodes(_text(environment, "SLURM_STEP_NODELIST")) if nodes > 1 else []
    if nodes > 1 and len(names) != nodes:
        raise _nonsense("SLURM_STEP_NODELIST", environment, f"it names {len(names)} nodes and the step has {nodes}")
    return Node(
        rank=_place(environment, "SLURM_NODEID", nodes),
        nodes=nodes,
        local=_number(environment, "SLURM_LOCALID", 0),
        launcher="SLURM",
        host=names[0] if names else None,
        port=_PORTS[(job + step) % len(_PORTS)] if nodes > 1 else 0,
        job=f"SLURM {job}.{step}",
        gpus=_number(environment, "SLURM_GPUS_ON_NODE", 0) or None if several_tasks else None,
    )


def expand_nodes(text: str) -> list[str]:
    """The names of SLURM's list of nodes, in its order: `a[01-03,07],b5` are a01, a02, a03, a07 and b5.

    Raises:
        EnvironmentProblem: it is none.
    """
    names: list[str] = []
    place = 0
    while place < len(text):
        part = _PART.match(text, place)
        if part is None or not part[1] or part[0] == text[place:] != part[1]:
            raise _no_list(text)
        names += _expand(part[1], text)
        place = part.end()
    if not names:
        raise _no_list(text)
    return names


def _expand(name: str, text: str) -> Iterator[str]:
    """A name, its first bracket filled in with each of its numbers, and so on with the rest."""
    before, bracket, rest = name.partition("[")
    if not bracket:
        yield name
        return
    inside, _, after = rest.partition("]")
    for item in inside.split(","):
        match = _RANGE.fullmatch(item)
        if match is None or not 0 <= int(match[2] or match[1]) - int(match[1]) < _MOST:
            raise _no_list(text)
        for number in range(int(match[1]), int(match[2] or match[1]) + 1):
            for ending in _expand(after, text):
                yield f"{before}{number:0{len(match[1])}d}{ending}"


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise _nonsense(name, environment, "it is no number")
    return int(text)


def _place(environment: Mapping[str, str], name: str, count: int) -> int:
    place = _number(environment, name, 0 if count == 1 else count)
    if place >= count:
        raise _nonsense(name, environment, f"there are {count} nodes, counted from 0")
    return place


def _text(environment: Mapping[str, str], name: str) -> str:
    text = environment.get(name, "")
    if not text:
        raise _nonsense(name, environment, "it is not set")
    return text


def _nonsense(name: str, environment: Mapping[str, str], why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"which node of the job this is cannot be told: {name}={environment.get(name, '')!r:.100}: {why}",
        hint="start the command with srun --ntasks-per-node 1, or with torchrun --nproc-per-node 1",
    )


def _no_list(text: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"SLURM's list of nodes cannot be read: {text!r:.200}",
        hint="start the command with torchrun: docs/devices.md",
    )


def _not_by(launcher: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{launcher} started this command in several processes, and it does not work so",
        hint="start it once on each node: srun --ntasks-per-node 1, torchrun --nproc-per-node 1 or accelerate "
        "launch: docs/devices.md",
    )
