"""The options of a run, resolved once: every default that depends on data, network or algorithm filled in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from agents.algorithms.adversarial import AdversarialTraining, plan
from agents.algorithms.registry import AlgorithmSpec, find_algorithm
from agents.common.compiling import compiles
from agents.config import TrainConfig
from agents.training.schedule import MAX_VALIDATIONS, learning_rate, phase_ends
from agents.training.snapshots import snapshot_moments
from envs import ImageDataset
from envs.errors import InputError

SMALL_IMAGE = 256  # pixels, up to which a second thread waits more than it works


@dataclass(frozen=True)
class Phase:
    """A phase of training."""

    algorithm: AlgorithmSpec  #: what learns
    end: int  #: images of the whole run after which it is over
    #: a number, or a function of the whole run's remaining progress
    learning_rate: float | Callable[[float], float]
    exploration: float  #: share of uniform random actions
    exploration_mode: str  #: ``batch`` or ``mixture``
    ent_coef: float  #: weight of the entropy bonus


@dataclass(frozen=True)
class ResolvedConfig:
    """What a run does."""

    options: TrainConfig  #: as given; those whose defaults depend on other things are the fields below
    phases: tuple[Phase, ...]  #: one, or those of the schedule
    batch_size: int  #: images per gradient step
    eval_every: int  #: images between validations and checkpoints
    threads: int  #: on the CPU
    compile: bool  #: whether the network is compiled
    norm: str  #: of the ball of adversarial training and of the probe
    eps: float  #: its radius
    probe_images: int  #: validation images that are attacked at each validation; 0: none
    attacks: AdversarialTraining | None  #: how training is attacked; None: not at all
    snapshots: tuple[int, ...]  #: images seen when weights are kept, rising

    @property
    def total(self) -> int:
        """Images of the whole run."""
        return self.phases[-1].end


def resolve(config: TrainConfig, train: ImageDataset) -> ResolvedConfig:
    """Return what ``config`` asks for on the training data ``train``.

    Raises:
        InputError: an option does not fit the data or the length of the run.
    """
    ends = phase_ends(config, len(train))
    warmup = config.lr_warmup * len(train) / ends[-1]
    phases = tuple(
        _phase(config, find_algorithm(name), end, warmup)
        for (name, _), end in zip(config.phases(), ends, strict=True)
    )
    channels, height, width = train.shape
    return ResolvedConfig(
        options=config,
        phases=phases,
        batch_size=min(config.images_per_step(), len(train)),
        eval_every=config.eval_every or max(len(train), -(-ends[-1] // MAX_VALIDATIONS)),
        threads=config.threads or (1 if height * width <= SMALL_IMAGE else torch.get_num_threads()),
        compile=compiles(config.compile, train.device),
        norm=config.adversarial.norm or "Linf",
        eps=config.adversarial.full_eps(channels),
        probe_images=config.probed_images(),
        attacks=_attacks(config, train, ends[-1]),
        snapshots=tuple(snapshot_moments(config, len(train))),
    )


def _phase(config: TrainConfig, spec: AlgorithmSpec, end: int, warmup: float) -> Phase:
    eps, mode, ent_coef = config.exploration.eps, config.exploration.mode, config.ppo.ent_coef
    eps = spec.exploration if eps is None else eps
    ent_coef = spec.ent_coef if ent_coef is None else ent_coef
    return Phase(spec, end, learning_rate(config, spec, warmup), eps, mode or spec.exploration_mode, ent_coef)


def _attacks(config: TrainConfig, train: ImageDataset, total: int) -> AdversarialTraining | None:
    if config.adversarial.method == "none":
        return None
    regime = plan(config.adversarial, train.shape, len(train))
    if regime.begins >= total:
        raise InputError(
            f"--adv-start is {config.adversarial.start:g} passes, {regime.begins:,} images, but training ends after "
            f"{total:,}; expected fewer passes, or a larger --total-images"
        )
    return regime
