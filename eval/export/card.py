"""The model card: ``README.md`` as Hugging Face shows it, with the numbers that result files hold."""

import json
import re
from collections.abc import Sequence
from typing import Any

from envs.errors import InputError
from eval.attack.labels import attack_label, protocol_label
from eval.attack.results import AttackResults
from eval.core.formatting import percent, templates, with_interval
from eval.core.targets import Samples, Target
from eval.export.evaluation import Evaluation

CARD = "README.md"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_HUB = {  # data sets that Hugging Face has
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}


def check_license(name: str | None) -> None:
    """Raise an InputError unless ``name`` can be the identifier of a licence on Hugging Face."""
    if name is not None and not _LICENSE.fullmatch(name):
        raise InputError(
            f"--license is {name!r}; expected an identifier in lower case such as mit, apache-2.0, cc-by-4.0 or other"
        )


def model_card(
    target: Target,
    samples: Samples,
    found: Evaluation,
    *,
    about: dict[str, Any],
    config: dict[str, Any],
    license: str | None = None,
) -> str:
    """Return the card in Markdown, its front matter in YAML.

    Args:
        target: the model.
        samples: images that the files were compared on.
        found: what is known of its robustness.
        about: the content of ``model.json``.
        config: the run's settings; empty for a model from elsewhere.
        license: identifier, None where the user names none: then the card has no such field.
    """
    rows = [_row(attack_label(result), protocol_label(result), result) for result in found.attacks]
    for case, number in found.worst:
        if number > 1:
            rows.append(_row(f"**worst case per image** of {number} attacks", "-", case))
    environment = templates("eval.export", autoescape=False, keep_trailing_newline=True)
    return environment.get_template("card.md.j2").render(
        front=_front_matter(target, samples, found, about, config, license),
        about=about,
        config=config,
        data=samples,
        rows=rows,
        audits=found.audits,
        notes=_protocol_notes(found.attacks),
    )


def _row(label: str, protocol: str, result: AttackResults) -> Sequence[str]:
    robust = with_interval(result.robust_accuracy, result.interval)
    cells = (str(result.threat), label, protocol, str(result.n), percent(result.clean_accuracy), robust)
    return [cell.replace("|", r"\|") for cell in cells]


def _front_matter(
    target: Target,
    samples: Samples,
    found: Evaluation,
    about: dict[str, Any],
    config: dict[str, Any],
    license: str | None,
) -> list[str]:
    """Return the lines of the front matter; JSON's texts, lists and objects are YAML's, too."""
    training = [str(config["algo"])] if config.get("algo") else []
    tags = ["adversarial-robustness", "image-classification", "labelbandit", *training]
    fields: dict[str, Any] = {} if license is None else {"license": license}
    fields |= {"library_name": "pytorch", "pipeline_tag": "image-classification", "tags": tags}
    if samples.name in _HUB:
        fields["datasets"] = [_HUB[samples.name]]
    fields["metrics"] = ["accuracy"]
    metrics = [{"type": "accuracy", "name": "accuracy, unattacked", "value": about["check"]["accuracy"]}]
    for case, number in found.worst:
        name = f"robust accuracy, {case.threat}, worst case of {number} attacks"
        metrics.append({"type": "accuracy", "name": name, "value": case.robust_accuracy})
    dataset = {"name": samples.name, "type": _HUB.get(samples.name, samples.name), "split": samples.split}
    results = [{"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}]
    fields["model-index"] = [{"name": target.name, "results": results}]
    return [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]


def _protocol_notes(attacks: Sequence[AttackResults]) -> list[str]:
    """Return what a reader must know of the protocols that occur."""
    protocols = {result.attack.get("protocol") for result in attacks}
    notes = []
    if "normalized" in protocols:
        notes.append("`normalized`: steps of full length along the gradient, in the ball and in [0, 1].")
    if "cleverhans" in protocols:
        notes.append(
            "`cleverhans`: the loss averaged over a batch and L2 steps that vanishing gradients shorten, as in Zou et "
            "al. 2026 (arXiv 2606.12251); it can overstate robustness."
        )
    if any(not result.in_box for result in attacks):
        notes.append("Attacks that may leave [0, 1] are listed and do not count in the worst case.")
    if any(result.attack["name"] == "autoattack" for result in attacks):
        notes.append("AutoAttack: Croce and Hein 2020; the version stands under protocol.")
    return notes
