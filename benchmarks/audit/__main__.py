"""``python -m benchmarks.audit``: detected masks, false alarms on sound models, and the accuracy that remains.

Trains small networks on scikit-learn's digits, masks them as ``cases`` says, audits each, and writes every row as soon
as it is measured; an interrupted run is resumed. ``--policies`` does the same for policies trained for more
and more passes. The page docs/results/audit.md is written from the rows that are there.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.audit import page
from benchmarks.audit.measure import CASES, measure
from benchmarks.audit.networks import EPS, NORM
from benchmarks.audit.policies import measure_policy, policy_jobs, train_policies
from benchmarks.common import RESULTS, describe_machine
from envs.files import read_json, write_atomic

ROWS = RESULTS / "audit-rows.jsonl"


def main(
    only: tuple[str, ...] = (),
    n: int = 100,
    seed: int = 10,
    eps: float = EPS,
    norm: str = NORM,
    policies: bool = False,
    runs: Path | None = None,
    page_only: bool = False,
    rows: Path = ROWS,
) -> None:
    """Audit the test bed.

    Args:
        only: models whose names begin with one of these; default all.
        n: images.
        seed: of the networks; thresholds were set on seeds 0 to 3, the published rows are of seed 10.
        eps: radius.
        norm: of the threat model.
        policies: the policies of the paper, trained for longer and longer, in place of the test bed.
        runs: folder of run directories with snapshots; default: train policies on the digits now.
        page_only: write the page from the rows that are there.
        rows: where rows are kept, one JSON object a line; the page is written from those in the usual place alone.
    """
    torch.set_num_threads(1)
    known = read(rows)
    done = {_key(row) for row in known}
    settings = {"n": n, "norm": norm, "eps": eps}
    if policies and not page_only and runs is None:
        runs = Path(tempfile.mkdtemp())
        train_policies(runs, seed)
    names = [] if page_only else policy_jobs(runs) if policies and runs else list(CASES)
    for name in names:
        if only and not name.startswith(only):
            continue
        if (name, seed, n, norm, eps) in done:
            continue
        row = (
            measure_policy(name, seed, n, norm, eps, runs)
            if policies and runs
            else measure(name, seed, n, norm, eps)
        )
        row |= settings
        known.append(row)
        write_atomic(rows, "".join(json.dumps(line) + "\n" for line in known))
        print(*(page.policy_cells(row) if policies else page.cells(row)), sep=" | ", flush=True)
    if rows == ROWS and known:
        machine = read_json(RESULTS / "audit.json")["machine"] if page_only else describe_machine()
        page.write(known, len(CASES), machine)


def read(rows: Path) -> list[dict[str, Any]]:
    """The rows measured so far."""
    return [json.loads(line) for line in rows.read_text().splitlines() if line] if rows.exists() else []


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["seed"], row["n"], row["norm"], row["eps"]


if __name__ == "__main__":
    tyro.cli(main)
