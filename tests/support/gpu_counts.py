"""What a step costs the host on a pretended GPU: operators beyond the network's passes, and waits; counted, not timed.

``python -m tests.support.gpu_counts`` prints the table of docs/results/not-run.md.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import attacks
from agents.config import DQNConfig, PPOConfig, TrainConfig
from agents.models.classifier import new_classifier
from agents.training.factory import build_algorithm, build_env
from agents.training.resolve import resolve
from envs import load_dataset
from tests.support.pretend_cuda import Events, PretendCuda

NORMS = {"Linf": 0.1, "L2": 0.7, "L1": 4.0}
FORWARD, FORWARD_AND_BACKWARD = 1, 2


class Attack(NamedTuple):
    """How an attack is counted: options at two lengths, what makes a step, and a step's passes.

    ``per_step`` is the part of the length that a step takes; 0: a step is a round, in which the model is asked once.
    """

    name: str
    length: str
    short: int
    long: int
    per_step: int = 1
    options: tuple[tuple[str, object], ...] = ()
    passes: tuple[int, ...] = (FORWARD_AND_BACKWARD,)


ATTACKS = {
    "pgd": Attack("pgd", "steps", 20, 60),
    "multitargeted": Attack("multitargeted", "steps", 20, 60, options=(("num_targets", 1),)),
    "apgd": Attack("apgd", "steps", 20, 60),
    "apgd_targeted": Attack("apgd_targeted", "steps", 20, 60, options=(("num_targets", 1),)),
    "fab_targeted": Attack(
        "fab_targeted", "steps", 20, 60, options=(("num_targets", 1),), passes=(FORWARD_AND_BACKWARD, FORWARD)
    ),
    "fab": Attack("fab", "steps", 20, 60, passes=(FORWARD,)),
    "square": Attack("square", "queries", 1010, 1410, per_step=0, passes=(FORWARD,)),
    "spsa": Attack("spsa", "queries", 171, 511, 17, (("samples", 16),), (FORWARD, FORWARD)),
    "nes": Attack("nes", "queries", 171, 511, 17, (("samples", 16),), (FORWARD, FORWARD)),
    "rays": Attack("rays", "queries", 20, 60, passes=(FORWARD,)),
}


class Counts(NamedTuple):
    """Of one step: operators beyond the network's passes, and waits."""

    operators: float
    waits: float


class Robust(nn.Module):
    """A network whose answers no perturbation changes, though its gradients are those of ``network``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("right", torch.tensor([[100.0] + [0.0] * 9]))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.right


def problem(robust: bool, images: int = 16) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of ``right`` answers, and images; the robust one is never wrong about them."""
    data = load_dataset("digits", "test")
    torch.manual_seed(0)
    network = new_classifier((1, 8, 8), 10, "mlp").eval()
    x = data.images[:images].float() / 255
    model = Robust(network) if robust else network
    return model, x, model(x).argmax(1)


def attack_events(name: str, norm: str, length: int, robust: bool) -> tuple[Events, int]:
    """Count an attack of this length on the pretended GPU, and how often it asked the model."""
    case = ATTACKS[name]
    model, x, y = problem(robust)
    asked: list[nn.Module] = []
    model.register_forward_hook(lambda module, inputs, output: asked.append(module))
    with PretendCuda() as gpu:
        model, x, y = model.cuda(), x.cuda(), y.cuda()
        options: dict[str, Any] = {case.length: length, **dict(case.options)}
        with gpu.counting() as events:
            getattr(attacks, case.name)(model, x, y, norm=norm, eps=NORMS[norm], **options)
    return events, len(asked)


@functools.cache
def attack_counts(
    name: str, norm: str, robust: bool = True, lengths: tuple[int, int] | None = None
) -> Counts:
    """Operators and waits that each further step of an attack costs; of a ``robust`` model nothing is broken.

    The step is that between two ``lengths``, by default the attack's own.
    """
    case = ATTACKS[name]
    short, long = lengths or (case.short, case.long)
    (few, first), (many, last) = (attack_events(name, norm, at, robust) for at in (short, long))
    steps = (long - short) / case.per_step if case.per_step else last - first
    return Counts(
        (many.launch_count - few.launch_count) / steps - sum(map(pass_operators, case.passes)),
        (many.wait_count - few.wait_count) / steps,
    )


def pass_operators(kind: int) -> int:
    """Operators of one pass of the attacked network: forward, or forward and backward."""
    model, x, _ = problem(robust=True)
    with PretendCuda() as gpu:
        model, x = model.cuda().requires_grad_(False), x.cuda()
        leaf = x.requires_grad_(kind == FORWARD_AND_BACKWARD)
        with gpu.counting() as events:
            logits = model(leaf)
            if kind == FORWARD_AND_BACKWARD:
                torch.autograd.grad(logits, leaf, torch.ones_like(logits))
    return events.launch_count - (kind == FORWARD_AND_BACKWARD)


TRAININGS: dict[str, dict[str, object]] = {
    "reinforce": {},
    "reinforce, augmentation": {"augmentation": "paper"},
    "reinforce, augmentation, CUDA graphs": {"augmentation": "paper", "cuda_graphs": True},
    "epg": {"algo": "epg"},
    "supervised": {"algo": "supervised"},
    "ppo": {"algo": "ppo", "ppo": PPOConfig(rollout=32, epochs=1)},
    "a2c": {"algo": "a2c"},
    "dqn": {"algo": "dqn", "dqn": DQNConfig(learning_starts=0, target_update_interval=64)},
}


@functools.cache
def training_counts(case: str, network: str = "cnn4", updates: int = 16) -> Counts:
    """Operators and waits of one update of 32 images, the network's passes and the optimizer included."""
    options = {"algo": "reinforce", "network": network, "batch_size": 32, "total_images": 10_000}
    config = TrainConfig(**(options | TRAININGS[case]))  # type: ignore[arg-type]
    with PretendCuda() as gpu:
        data = load_dataset("digits").to("cuda")
        settings = resolve(config, data)
        model = build_algorithm(settings, build_env(settings, data), data)
        model.learn(32 * updates, log_interval=None)  # type: ignore[arg-type]
        with gpu.counting() as events:
            model.learn(32 * updates, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
    return Counts(events.launch_count / updates, events.wait_count / updates)


def rows(count: Callable[..., Counts] = attack_counts) -> Iterator[str]:
    """Lines of the table."""
    yield "| step of | operators | waits |"
    yield "|---|---:|---:|"
    for name in ATTACKS:
        for norm in NORMS if name != "rays" else ("Linf",):
            found = count(name, norm)
            yield f"| {name}, {norm} | {found.operators:.0f} | {found.waits:.2f} |"
    for case in TRAININGS:
        found = training_counts(case)
        yield f"| {case}, cnn4 | {found.operators:.0f} | {found.waits:.2f} |"


if __name__ == "__main__":
    for line in rows():
        print(line, flush=True)
