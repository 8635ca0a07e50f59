"""The typed configuration of a training run; the command line is made from it."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

import msgspec
import tyro

from agents.adversarial_config import AdversarialConfig
from agents.algorithms.registry import algorithm_names, find_algorithm
from agents.common.plain_numbers import PlainNumbers
from envs.errors import InputError, unknown_name

SMALL_NETWORKS = ("small", "mlp")
_POSITIVE = (
    "total_images passes batch_size learning_rate image_size episode_length eval_every probe_steps pictures_every "
    "threads ppo.rollout ppo.epochs ppo.clip_range ppo.target_kl dqn.buffer_size dqn.target_update_interval"
)
_SHARES = "lr_end label_noise exploration.eps ppo.gamma ppo.gae_lambda dqn.exploration_fraction"
_OTHERS = (
    "seed lr_warmup probe_images weight_decay max_grad_norm ppo.vf_coef ppo.ent_coef dqn.learning_starts"
)
_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (_POSITIVE, lambda value: 0 < value < math.inf, "a number above 0"),
    (_SHARES, lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    (_OTHERS, lambda value: 0 <= value < math.inf, "0 or more"),
)


@dataclass(frozen=True)
class PPOConfig(PlainNumbers):
    """Settings of ``--algo ppo`` (Schulman et al. 2017) and, where they apply, ``a2c`` (Mnih et al. 2016)."""

    rollout: int = 1024
    """Images per PPO rollout."""
    epochs: int = 4
    """PPO passes over each rollout."""
    clip_range: float = 0.2
    """PPO: how far the probability ratio may move from 1."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    ent_coef: float | None = None
    """Weight of the entropy bonus (not dqn, supervised). Default: 0; a2c 0.1, without which it forgets classes."""
    gamma: float = 0.0
    """Discount. Images are drawn independently of the actions, so 0 is right for everything but stop-on-error."""
    gae_lambda: float = 0.95
    """Lambda of the generalised advantage estimate."""
    target_kl: float | None = None
    """Stop a PPO update early beyond this divergence."""
    normalize_advantage: bool = True
    """Scale the advantages of a minibatch to zero mean and unit deviation."""


@dataclass(frozen=True)
class ExplorationConfig(PlainNumbers):
    """How actions leave the policy (epsilon-greedy on the whole batch: arXiv 2606.12251)."""

    eps: float | None = None
    """Probability of uniform random actions. Default: 0.1; ppo 0; dqn ends at 0.05."""
    mode: Literal["batch", "mixture"] | None = None
    """``batch``: the whole batch explores at once, as in the paper, and counts as drawn from the policy.
    ``mixture``: each image on its own, with the mixture's exact log-probability. Default: batch for reinforce and
    epg, mixture for ppo and a2c."""


@dataclass(frozen=True)
class DQNConfig(PlainNumbers):
    """Settings of ``--algo dqn`` (Mnih et al. 2015)."""

    buffer_size: int = 50_000
    """Transitions kept for replay; they are indices, not images."""
    learning_starts: int = 1_000
    """Images seen before the first update."""
    target_update_interval: int = 1_000
    """Images between copies to the target network."""
    exploration_fraction: float = 0.2
    """Share of training over which the exploration rate falls from 1 to its final value."""


@dataclass(frozen=True)
class TrainConfig(PlainNumbers):
    """Train an image classifier as a policy, then attack it and print the table."""

    FIRST: ClassVar = "algo dataset network passes learning_rate adversarial.method seed device preset resume"

    algo: str = "ppo"
    """ppo, a2c, dqn, reinforce, epg, supervised, or package.module:Class of a Stable-Baselines3 algorithm."""
    dataset: str = "digits"
    """digits, mnist, fashion-mnist, cifar10, cifar100, stl10, imagenet100, folder:PATH or npz:PATH."""
    network: str = "small"
    """small, strided, mlp, nature, cnn4, cnn6, wrn16-4, vit, resnet18, resnet50, densenet121, or
    package.module:Callable."""
    pretrained: bool = False
    """Begin with torchvision's ImageNet weights (resnet18, resnet50, densenet121), downloaded if they are missing."""
    seed: int = 0
    """Seed of weights, data order, actions and attacks."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    preset: str | None = None
    """Begin with the settings of this name, which other options override; see --list-presets."""
    list_presets: bool = False
    """Show the presets and stop."""
    hyperparameters: str | None = None
    """Begin with those of an rl_zoo3 file, FILE.yml or FILE.yml:ENTRY, which other options override."""
    total_images: int | None = None
    """Images to train on, repetitions counted. Default: 40 passes, and at least 60,000."""
    passes: float | None = None
    """Passes over the training set, in place of --total-images."""
    run_dir: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None
    """Where the run is kept. Default: runs/<dataset>-<algo>-<network>-s<seed>."""
    resume: Path | None = None
    """Continue this run with its own configuration; every other option is ignored."""
    data_root: Path | None = None
    """Where data sets lie or are downloaded to. Default: $LABELBANDIT_DATA or ~/.cache/labelbandit/data."""
    image_size: int | None = None
    """Resize images to this many pixels a side."""
    schedule: str | None = None
    """Phases in place of --algo, as algorithm:passes, e.g. supervised:5,reinforce:20."""
    schedule_optimizer: Literal["keep", "reset"] = "keep"
    """Whether the optimiser's state passes from phase to phase."""

    batch_size: int | None = None
    """Images per gradient step. Default: 64 for small and mlp, else 256; ppo always 256."""
    learning_rate: float | None = None
    """Default: 2e-3 for small and mlp, else 1e-3; half of that for a2c."""
    lr_schedule: Literal["constant", "linear", "linear-floor", "cosine"] = "linear"
    """How the learning rate falls to --lr-end. linear-floor falls towards 0 and stays once it is there."""
    lr_end: float = 0.02
    """Share of the learning rate that is left at the end."""
    lr_warmup: float = 0.0
    """Passes over the training set in which the learning rate rises from 0."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this L2 norm; 0 switches it off."""

    augmentation: str = "none"
    """none, paper, standard, or a list such as hflip,translate:0.1 or crop:4."""
    reward: str = "accuracy"
    """accuracy (1 if right, else 0), signed (+1, -1), or a JSON file with a (class x action) matrix."""
    label_noise: float = 0.0
    """Share of training images rewarded by a wrong label."""
    episode_length: int = 1
    """Images per episode; 1 is the bandit."""
    stop_on_error: bool = False
    """End an episode at its first wrong answer."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the network under autocast while training. On a GPU, training rounds products of fp32 to TF32.
    Evaluation and attacks are always fp32 without TF32."""
    channels_last: bool = True
    """Memory layout of convolutional networks."""
    compile: bool | None = None
    """Compile the network with torch.compile: a minute once, faster steps after. Default: on a GPU."""
    cuda_graphs: bool = False
    """On a GPU, record the training step as CUDA graphs, which saves small networks most of the time that launching
    takes; for reinforce, epg and supervised without --adversarial."""
    deterministic: bool = False
    """Deterministic CUDA kernels, with a warning where there is none; the CPU is deterministic anyway."""
    threads: int | None = None
    """CPU threads. Default: PyTorch's; 1 for images of up to 16x16 pixels, where threads wait more than they work."""

    eval_every: int | None = None
    """Images between validations and checkpoints. Default: one pass, and at most 100 validations a run."""
    select: Literal["clean", "robust"] = "clean"
    """Keep the weights of best clean, or best robust validation accuracy (that of the probe)."""
    probe_images: int | None = None
    """Validation images that each validation attacks by PGD, for robust accuracy, gradient norm and logit margin.
    Default: 256 for adversarial training and --select robust; else 0, none."""
    probe_steps: int = 10
    """Gradient steps of the probe. Its ball is that of --adv-eps and --adv-norm, or their defaults."""
    snapshots: str | None = None
    """Keep weights while training, in snapshots/: a number N, evenly in the logarithm of images from one pass to the
    end, or passes such as 1,5,20. For python -m eval.trajectory."""
    pictures_every: int | None = None
    """Images between pictures in TensorBoard: attacked validation images, indicators along PGD, accuracy by radius."""
    attack: bool = True
    """Attack the finished classifier for the closing table."""
    progress: bool = True
    """Show a progress bar."""

    adversarial: Annotated[AdversarialConfig, tyro.conf.arg(name="")] = field(
        default_factory=AdversarialConfig
    )
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    ppo: Annotated[PPOConfig, tyro.conf.arg(name="ppo")] = field(default_factory=PPOConfig)
    dqn: DQNConfig = field(default_factory=DQNConfig)

    def phases(self) -> tuple[tuple[str, float | None], ...]:
        """Return (algorithm, passes) of each phase; None passes: --total-images; InputError: it cannot be read."""
        if self.schedule is None:
            return ((self.algo, self.passes),)
        phases = []
        for part in self.schedule.split(","):
            match = re.fullmatch(r"\s*([\w-]+)\s*:\s*(\d+(?:\.\d+)?)\s*", part)
            if match is None or float(match[2]) <= 0:
                expected = "expected algorithm:passes, e.g. supervised:5,reinforce:20"
                raise InputError(f"cannot read the phase {part!r} of --schedule; {expected}")
            if match[1] not in (names := algorithm_names(in_schedules=True)):
                raise unknown_name("algorithm in --schedule", match[1], names)
            phases.append((match[1], float(match[2])))
        return tuple(phases)

    def images_per_step(self) -> int:
        """Return the batch size, or its default."""
        if self.batch_size is not None or self.network not in SMALL_NETWORKS:
            return self.batch_size or 256
        return max(find_algorithm(name).small_batch for name, _ in self.phases())

    def validate(self) -> None:
        """Check everything that can be checked without data.

        Raises:
            InputError: a value is out of its range; the message names it.
        """
        find_algorithm(self.algo)
        algorithms = [name for name, _ in self.phases()]
        for options, fits, expected in _RANGES:
            for option in options.split():
                value = attrgetter(option)(self)
                if value is not None and not fits(value):
                    raise InputError(f"--{option.replace('_', '-')} is {value}; expected {expected}")
        if self.seed >= 2**32:
            raise InputError(f"--seed is {self.seed}; expected less than 2**32")
        if self.passes is None:
            total = sum(passes for _, passes in self.phases() if passes) or None
        elif self.schedule is not None or self.total_images is not None:
            other = "--schedule" if self.schedule is not None else "--total-images"
            raise InputError(f"--passes is {self.passes:g} and {other} is given as well; choose one of them")
        else:
            total = self.passes
        for option, value in (("--adv-start", self.adversarial.start), ("--lr-warmup", self.lr_warmup)):
            if total is not None and value and value >= total:
                ends = f"training ends after {total:g}; expected fewer"
                raise InputError(f"{option} is {value:g} passes, but {ends}")
        self.adversarial.validate(algorithms)
        if self.select == "robust" and self.probe_images == 0:
            raise InputError("--select robust goes by the probe, and --probe-images is 0; leave it out")
        for name in algorithms:
            find_algorithm(name).check(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Rebuild a configuration written by :meth:`to_dict`.

        Raises:
            InputError: a field is unknown or of the wrong type.
        """
        _refuse_unknown(cls, values)
        try:
            return msgspec.convert(values, cls, dec_hook=lambda kind, value: kind(value))  # paths
        except msgspec.ValidationError as error:
            place = str(error).partition(" - at `$.")[2].rstrip("`")
            found: Any = values
            hint: Any = cls
            for name in place.split("."):
                found, hint = found[name], get_type_hints(hint)[name]
            kind = hint.__name__ if isinstance(hint, type) else re.sub(r"typing\.|pathlib\.", "", str(hint))
            raise InputError(f"the stored configuration has {place}={found!r}; expected {kind}") from None


def _refuse_unknown(cls: Any, values: Any) -> None:
    """Raise InputError for fields that ``cls`` does not have; msgspec would pass them over."""
    if not isinstance(values, dict):
        raise InputError(f"a stored configuration has {values!r} for {cls.__name__}; expected an object")
    known = [item.name for item in dataclasses.fields(cls)]
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in known:
            raise unknown_name("field of the stored configuration", name, known)
        if dataclasses.is_dataclass(kind := hints[name]):
            _refuse_unknown(kind, value)
