"""The tables of accuracies: clean, PGD by protocol, AutoAttack, query attacks; and the list of all tables."""

from collections.abc import Sequence
from statistics import mean

from eval.attack.results import AttackResults
from eval.core.threats import Threat
from eval.study.results.cell_results import Observation
from eval.study.results.model_tables import audit_table, mechanism_table, trajectory_table, transfer_table
from eval.study.results.overview import Board, clean, entries, is_cleverhans, outcome, pair, survives
from eval.study.results.published import SOURCE, paper_pgd
from eval.study.results.significance_tables import cost_table, tests_table
from eval.study.results.statistics import rate_of
from eval.study.results.table import Column, Table

PGD = ("pgd", "fgsm")
AUTOATTACK = ("autoattack", "apgd", "apgd_targeted", "fab", "fab_targeted")
QUERY_ATTACKS = ("square", "spsa", "nes", "boundary", "hopskipjump", "rays")
INTERVALS = (
    "Means over seeds. Brackets: Wilson's 95 % interval over test images at the mean; column over seeds: Student's "
    "95 % t-interval."
)


def clean_table(board: Board) -> Table:
    """Clean accuracy on all test images and on those that were attacked."""
    rows = []
    for place, found in board.rows():
        whole = [item.train["test_accuracy"] for item in found]
        n = found[0].train.get("test_images")
        rows.append(
            place
            | {"whole": {"value": mean(whole), "n": n}, "seeds": len(found)}
            | entries("clean", rate_of(found, clean))
        )
    columns = board.columns(
        Column("regime", "regime"),
        Column("whole", "all test images", "percent"),
        *pair("clean", "attacked images"),
        Column("seeds", "seeds", "integer"),
    )
    return Table("clean", "Clean accuracy", INTERVALS, columns, tuple(rows))


def pgd_table(board: Board) -> Table:
    """PGD under every protocol and loss of the study, with the share of shortened steps."""
    listed = board.attacks(*PGD)
    columns = [Column("threat", "threat"), Column("regime", "regime"), Column("clean", "clean", "percent")]
    rows = []
    for attack in listed:
        columns += pair(attack.name, attack.name)
        if is_cleverhans(attack):
            columns.append(Column(f"{attack.name}_shortened", "steps shortened", "percent"))
    for threat in board.grid.threats:
        for place, found in board.rows():
            row = place | {"threat": str(threat)}
            own = rate_of(found, clean)
            row |= {"clean": None if own is None else own.mean, "paper": paper_pgd(found[0].cell, threat)}
            for attack in listed:
                row |= entries(attack.name, rate_of(found, outcome(threat, attack.name)))
                row[f"{attack.name}_shortened"] = _shortened(found, threat, attack.name)
            rows.append(row)
    if any(row["paper"] for row in rows):
        columns.append(Column("paper", f"paper ({SOURCE})"))
    note = (
        "pgd: steps of unit length; cleverhans: loss averaged over 128 images and L2 steps floored, so that vanishing "
        "gradients shorten them, last iterate; mifpe and margin: other losses, unit steps; pgd-paper: cleverhans "
        "without clipping to [0, 1], so no robust accuracy under that box. " + INTERVALS
    )
    return Table("pgd", "PGD by protocol", note, board.columns(*columns), tuple(rows))


def _shortened(found: Sequence[Observation], threat: Threat, name: str) -> float | None:
    if threat.norm != "L2":
        return None
    shares = [
        share
        for item in found
        if (result := item.attacks.get(threat, {}).get(name)) is not None
        and (share := result.shortened) is not None
    ]
    return mean(shares) if shares else None


def autoattack_table(board: Board) -> Table | None:
    """AutoAttack, and the per-image worst case over every attack of the study."""
    listed = board.attacks(*AUTOATTACK)
    columns = [Column("threat", "threat"), Column("regime", "regime")]
    for attack in listed:
        columns += pair(attack.name, "AutoAttack fast" if attack.name == "fast" else attack.name)
    columns += pair("worst", "worst case of all attacks")
    rows = []
    for threat in board.grid.threats:
        for place, found in board.rows():
            row = place | {"threat": str(threat)}
            for attack in listed:
                row |= entries(attack.name, rate_of(found, outcome(threat, attack.name)))
            rows.append(row | entries("worst", rate_of(found, survives(threat))))
    note = "Worst case: an image counts as robust if no attack of the study broke it. " + INTERVALS
    return Table("autoattack", "AutoAttack and the worst case", note, board.columns(*columns), tuple(rows))


def other_table(board: Board) -> Table | None:
    """Every attack of the study that no other table of accuracies has a column for."""
    shown = board.attacks(*PGD, *AUTOATTACK, *QUERY_ATTACKS)
    listed = [attack for attack in board.grid.attacks if attack not in shown]
    if not listed:
        return None
    columns = [Column("threat", "threat"), Column("regime", "regime")]
    for attack in listed:
        columns += pair(attack.name, attack.name)
    rows = []
    for threat in board.grid.threats:
        for place, found in board.rows():
            row = place | {"threat": str(threat)}
            for attack in listed:
                row |= entries(attack.name, rate_of(found, outcome(threat, attack.name)))
            rows.append(row)
    return Table("other", "Further attacks", INTERVALS, board.columns(*columns), tuple(rows))


def query_table(board: Board) -> Table | None:
    """Attacks that ask for outputs alone."""
    listed = board.attacks(*QUERY_ATTACKS)
    if not listed:
        return None
    columns = [Column("threat", "threat"), Column("regime", "regime")]
    for attack in listed:
        columns += [
            *pair(attack.name, attack.name),
            Column(f"{attack.name}_queries", "queries/image", "integer"),
        ]
    rows = []
    for threat in board.grid.threats:
        for place, found in board.rows():
            row = place | {"threat": str(threat)}
            for attack in listed:
                row |= entries(attack.name, rate_of(found, outcome(threat, attack.name)))
                results = [
                    item.attacks[threat][attack.name]
                    for item in found
                    if attack.name in item.attacks.get(threat, {})
                ]
                row[f"{attack.name}_queries"] = _queries(results)
            rows.append(row)
    note = "Queries until success, averaged over all images. " + INTERVALS
    return Table("query", "Query attacks", note, board.columns(*columns), tuple(rows))


def _queries(results: Sequence[AttackResults]) -> float | None:
    return mean(float(result.queries.mean()) for result in results) if results else None


def all_tables(board: Board) -> list[Table]:
    """Return every table that the study has figures for."""
    made = (clean_table, pgd_table, autoattack_table, query_table, other_table, transfer_table)
    made += (mechanism_table, trajectory_table, audit_table, tests_table, cost_table)  # type: ignore[assignment]
    return [table for make in made if (table := make(board)) is not None]
