"""The options of adversarial training, their defaults by method, and the checks that need no data."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from agents.algorithms.registry import algorithm_names, find_algorithm
from agents.common.command_line import parse_number
from agents.common.plain_numbers import PlainNumbers
from agents.common.protocols import default_eps
from envs.errors import InputError

_DEFAULT_STEPS = {"fgsm": 1, "pgd": 7, "trades": 10}
_NUMBER = PrimitiveConstructorSpec[float](
    nargs=1,
    metavar="FLOAT|FRACTION",
    instance_from_str=lambda words: parse_number(words[0]),
    is_instance=lambda value: value is None or isinstance(value, (int, float)),
    str_from_instance=lambda value: [str(value)],
)
_LONGEST_STEP = 1.25  # in radii; for a single step from a random start (Wong et al. 2020)


@dataclass(frozen=True)
class AdversarialConfig(PlainNumbers):
    """Train on attacked images. Every option is None where the method's default applies."""

    method: Annotated[Literal["none", "fgsm", "pgd", "trades"], arg(name="adversarial")] = "none"
    """fgsm: add --adv-weight times the loss on images moved by one signed gradient step (Goodfellow et al. 2015;
    the rule of arXiv 2606.12251). pgd: train on images from projected gradient ascent (Madry et al. 2018). trades: add
    --adv-weight times KL(p(x) || p(x_adv)) (Zhang et al. 2019). ppo and a2c observe the attacked images (fgsm, pgd);
    dqn takes none of these."""
    eps: Annotated[float | None, _NUMBER, arg(name="adv-eps")] = None
    """Radius in units of pixels in [0, 1], e.g. 0.1 or 8/255. Default: Linf 0.1 and L2 1.5 for greyscale images, 8/255
    and 1.0 for colour."""
    norm: Annotated[Literal["Linf", "L2", "L1"] | None, arg(name="adv-norm")] = None
    """Norm of the ball. Default: Linf."""
    steps: Annotated[int | None, arg(name="adv-steps")] = None
    """Gradient steps of the attack. Default: pgd 7, trades 10."""
    step_size: Annotated[float | None, _NUMBER, arg(name="adv-step-size")] = None
    """Length of a step, like --adv-eps. Default: 2.5 eps / steps, and at most 1.25 eps."""
    mix: Annotated[Literal["add", "replace"] | None, arg(name="adv-mix")] = None
    """add: clean loss + weight * loss on attacked images. replace: attacked images alone, acted on as they were shown.
    Default: fgsm add, pgd replace; ppo and a2c always replace."""
    weight: Annotated[float | None, arg(name="adv-weight")] = None
    """Weight of the adversarial term. Default: 1 for --adv-mix add, 6 for trades; replace has none."""
    objective: Annotated[Literal["own", "ce"] | None, arg(name="adv-objective")] = None
    """What the attack raises: the algorithm's own loss, actions sampled, or cross-entropy. Default: fgsm own, pgd ce;
    trades always raises the KL divergence."""
    share: Annotated[float | None, arg(name="adv-share")] = None
    """Share of the images that --adv-mix replace attacks. Default: 1."""
    start: Annotated[float | None, arg(name="adv-start")] = None
    """Passes over the training set before the first attack. Default: 0. Model selection starts again there."""
    trades_start: Annotated[Literal["clipped", "official"] | None, arg(name="adv-trades-start")] = None
    """Where trades begins: at the noisy image clipped to [0, 1], or as it is, as the authors' code does. The points
    after it are clipped in both. Default: clipped."""

    @property
    def rule(self) -> Literal["add", "replace", "trades"]:
        """How attacked images enter the loss of supervised, reinforce and epg."""
        if self.method == "trades":
            return "trades"
        return self.mix or ("add" if self.method == "fgsm" else "replace")

    def full_weight(self) -> float:
        """Return the weight of the adversarial term, or its default."""
        return (6.0 if self.method == "trades" else 1.0) if self.weight is None else self.weight

    def full_steps(self) -> int:
        """Return the number of gradient steps, or its default."""
        return self.steps or _DEFAULT_STEPS[self.method]

    def full_objective(self) -> Literal["own", "ce"]:
        """Return what the attack raises, or its default."""
        return self.objective or ("own" if self.method == "fgsm" else "ce")

    def full_eps(self, channels: int) -> float:
        """Return the radius, or the one that is usual for images with ``channels`` channels."""
        return default_eps(self.norm or "Linf", channels) if self.eps is None else self.eps

    def resolved(self, channels: int) -> dict[str, Any] | None:
        """Return every value that training on images with ``channels`` channels uses, for records; None: no attacks."""
        if self.method == "none":
            return None
        eps, steps = self.full_eps(channels), self.full_steps()
        step_size = eps if self.method == "fgsm" else self.step_size or default_step_size(eps, steps)
        return {
            "method": self.method,
            "norm": self.norm or "Linf",
            "eps": eps,
            "steps": steps,
            "step_size": step_size,
            "rule": self.rule,
            "weight": None if self.rule == "replace" else self.full_weight(),
            "objective": "divergence" if self.method == "trades" else self.full_objective(),
            "share": self.share or 1.0,
            "start": self.start or 0.0,
        } | ({"trades_start": self.trades_start or "clipped"} if self.method == "trades" else {})

    def validate(self, algorithms: Iterable[str]) -> None:
        """Check all options against each other and against the algorithms that they are for.

        Raises:
            InputError: a value is out of its range, or does not go with the method or an algorithm.
        """
        if self.method == "none":
            for item in fields(self)[1:]:
                if (value := getattr(self, item.name)) is not None:
                    remedy = "choose fgsm, pgd or trades, or leave the option out"
                    raise InputError(f"{_option(item.name)} is {value} but --adversarial is none; {remedy}")
            return
        self._check_ranges()
        algorithms = tuple(algorithms)
        for algorithm in algorithms:
            self._check_algorithm(algorithm)
        kinds = {find_algorithm(algorithm).adversarial for algorithm in algorithms}
        self._check_method({"replace" if kind == "observations" else self.rule for kind in kinds})

    def _check_ranges(self) -> None:
        for name in ("eps", "steps", "step_size", "weight"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{_option(name)} is {value}; expected a number above 0")
        if self.eps is not None and (self.norm or "Linf") == "Linf" and self.eps > 1:
            problem = f"--adv-eps is {self.eps:g}; pixels lie in [0, 1], so expected at most 1"
            raise InputError(f"{problem}; divide by 255, e.g. {self.eps:g}/255")
        if self.share is not None and not 0 < self.share <= 1:
            raise InputError(f"--adv-share is {self.share}; expected a share above 0 and up to 1")
        if self.start is not None and not 0 <= self.start < math.inf:
            raise InputError(f"--adv-start is {self.start}; expected 0 or more passes over the training set")

    def _check_method(self, rules: set[str]) -> None:
        """Refuse options that the method, or the ``rules`` by which its images enter the loss, have no use for."""
        unused = {
            "fgsm": {"steps": "fgsm takes one step; use --adversarial pgd", "step_size": "its step is eps"},
            "trades": {
                "mix": "trades keeps the clean loss and adds the divergence",
                "objective": "trades raises the divergence",
            },
        }.get(self.method, {})
        if self.method != "trades":
            unused = unused | {"trades_start": "it is where trades begins"}
        if rules == {"replace"}:
            unused = unused | {"weight": "attacked images alone are trained on; use --adv-mix add"}
        elif "replace" not in rules:
            unused = unused | {"share": "every image is shown both ways; use --adv-mix replace"}
        for name, reason in unused.items():
            if (value := getattr(self, name)) is not None:
                vain = f"has no meaning for --adversarial {self.method}: {reason}"
                raise InputError(f"{_option(name)} is {value} but {vain}")

    def _check_algorithm(self, algorithm: str) -> None:
        kind = find_algorithm(algorithm).adversarial
        if kind == "loss":
            return
        kinds = {name: find_algorithm(name).adversarial for name in algorithm_names()}
        if self.method == "trades":
            raise InputError(
                f"trades needs the logits of clean images in the loss, and {algorithm} has none; use it with "
                f"{', '.join(name for name in kinds if kinds[name] == 'loss')}, or choose --adversarial pgd"
            )
        if kind == "none":
            offered = ", ".join(name for name in kinds if kinds[name] != "none")
            raise InputError(f"--adversarial {self.method} is not offered for {algorithm}; use {offered}")
        if self.mix == "add" or self.weight is not None:
            raise InputError(
                f"{algorithm} sees attacked images in place of clean ones, so --adv-mix add and --adv-weight have no "
                "meaning; leave them out, or attack a part of the images by --adv-share"
            )
        if self.objective == "own":
            raise InputError(f"{algorithm} has no loss before its rollout is over; use --adv-objective ce")


def default_step_size(eps: float, steps: int) -> float:
    """Return 2.5 eps / steps, and at most 1.25 eps."""
    return eps * min(2.5 / steps, _LONGEST_STEP)


def _option(name: str) -> str:
    return f"--adv-{name.replace('_', '-')}"
