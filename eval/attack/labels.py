"""What tables call an attack and say of its results."""

from collections.abc import Sequence

from eval.attack.results import AttackResults
from eval.core.formatting import count, duration, percent, with_interval

ATTACK_HEADINGS = ("robust [95 %]", "steps shortened", "queries/image", "time")


def attack_label(results: AttackResults) -> str:
    """Return what a table calls an attack: its name, its length, and the options that make it another attack."""
    options = results.attack
    name, steps, loss = options["name"].replace("_", "-"), options.get("steps"), options.get("loss", "ce")
    words = {
        name if steps is None else f"{name}-{steps}": True,
        loss: loss != "ce",
        "own labels": options.get("labels") == "predicted",
        "last iterate": options.get("keep") == "last",
        "unclipped": not results.in_box,
        f"x{options.get('restarts')}": options.get("restarts", 1) not in (1, None),
        "from " + ", ".join(one["name"] for one in options.get("sources") or ()): options.get("sources"),
        f"targeted: {options.get('targeted')}": options.get("targeted"),
    }
    return " ".join(word for word, told in words.items() if told)


def protocol_label(results: AttackResults) -> str:
    """Return protocol or version of an attack; a dash where it has neither."""
    found = results.attack.get("protocol") or results.attack.get("version") or "-"
    text = found if isinstance(found, str) else "+".join(map(str, found))
    return text if results.in_box else f"{text}, may leave [0, 1]"


def attack_cells(results: AttackResults) -> Sequence[str]:
    """Return protocol (or version), robust accuracy, share of shortened steps, queries per image, time."""
    return (
        protocol_label(results),
        with_interval(results.robust_accuracy, results.interval),
        percent(results.shortened_l2),
        count(float(results.queries.mean())),
        duration(results.cost.get("seconds", 0.0)),
    )


def blame_line(results: AttackResults) -> str | None:
    """Return how many images each stage of the attack was the first to break; None if it has no stages."""
    names = [name for name in results.broken_by if name is not None]
    if set(names) <= {"clean", results.attack["name"]}:
        return None
    tally = {name: names.count(name) for name in dict.fromkeys(sorted(names))}
    return "broken by: " + ", ".join(f"{name} {number}" for name, number in tally.items())
