"""The options of a run, resolved once: every default that depends on data, network or algorithm filled in."""

from dataclasses import dataclass

import torch

from agents.algorithms.adversarial import AdversarialTraining, plan
from agents.algorithms.registry import find_algorithm
from agents.algorithms.setups import Phase
from agents.common.compiling import compiles
from agents.config import TrainConfig
from agents.training.schedule import MAX_VALIDATIONS, learning_rate, phase_ends
from agents.training.snapshots import snapshot_moments
from envs import ImageDataset
from envs.errors import InputError

SMALL_IMAGE = 256  # pixels, up to which a second thread waits more than it works


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
    eps, mode, ent_coef = config.exploration.eps, config.exploration.mode, config.ppo.ent_coef
    phases = []
    for (name, _), end in zip(config.phases(), ends, strict=True):
        spec = find_algorithm(name)
        phases.append(
            Phase(
                spec=spec,
                end=end,
                learning_rate=learning_rate(config, spec, warmup),
                exploration=spec.exploration if eps is None else eps,
                exploration_mode=mode or spec.exploration_mode,
                ent_coef=spec.ent_coef if ent_coef is None else ent_coef,
            )
        )
    attacks = None
    if config.adversarial.method != "none":
        attacks = plan(config.adversarial, train.shape, len(train))
        if attacks.begins >= ends[-1]:
            raise InputError(
                f"--adv-start is {config.adversarial.start:g} passes, {attacks.begins:,} images, but training ends "
                f"after {ends[-1]:,}; expected fewer passes, or a larger --total-images"
            )
    probed = 256 if attacks is not None or config.select == "robust" else 0
    channels, height, width = train.shape
    return ResolvedConfig(
        options=config,
        phases=tuple(phases),
        batch_size=min(config.images_per_step(), len(train)),
        eval_every=config.eval_every or max(len(train), -(-ends[-1] // MAX_VALIDATIONS)),
        threads=config.threads or (1 if height * width <= SMALL_IMAGE else torch.get_num_threads()),
        compile=compiles(config.compile, train.device),
        norm=config.adversarial.norm or "Linf",
        eps=config.adversarial.full_eps(channels),
        probe_images=probed if config.probe_images is None else config.probe_images,
        attacks=attacks,
        snapshots=tuple(snapshot_moments(config, len(train))),
    )
