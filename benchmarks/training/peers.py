"""The loops that training is measured against: bare PyTorch, DataLoader with PIL, stock SB3, and single-file PPO."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from agents.models.classifier import new_classifier
from agents.models.image_network import ImageNetwork, to_fast_layout
from envs import ImageDataset, ImageTask

LEARNING_RATE = 1e-3


def classifier_of(dataset: ImageDataset, network: str, channels_last: bool = True) -> nn.Module:
    mean, std = dataset.channel_stats()
    model = new_classifier(dataset.shape, dataset.num_classes, network, mean, std).to(dataset.device)
    return (to_fast_layout(model) if channels_last else model).train()


def bare_loop(
    dataset: ImageDataset, network: str, batch: int, precision: str = "fp32", channels_last: bool = True
) -> Callable[[int], None]:
    """Supervised learning as one writes it by hand, data on the device: the yardstick."""
    model = classifier_of(dataset, network, channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-4, fused=True)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def run(images: int) -> None:
        done = 0
        while done < images:
            for rows in torch.randperm(len(dataset), device=dataset.device).split(batch):
                if len(rows) < batch:
                    continue
                pixels = dataset.images[rows].to(torch.float32, memory_format=layout).div_(255)
                with torch.autocast(dataset.device.type, torch.bfloat16, enabled=precision == "bf16"):
                    logits = model(pixels)
                loss = F.cross_entropy(logits.float(), dataset.labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                done += batch
                if done >= images:
                    return

    return run


class _PILImages(Dataset):
    """Images as PIL objects with the paper's transforms, one at a time."""

    def __init__(self, dataset: ImageDataset) -> None:
        arrays = dataset.images.permute(0, 2, 3, 1).cpu().numpy()
        self.images = [Image.fromarray(array.squeeze()) for array in arrays]
        self.labels = dataset.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomVerticalFlip(),
                transforms.RandomAffine(0, translate=(0.1, 0.1)),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(self.images[row]), self.labels[row]


def pil_loop(dataset: ImageDataset, network: str, batch: int, workers: int) -> Callable[[int], None]:
    """Supervised learning from a DataLoader with per-image PIL transforms."""
    model = classifier_of(dataset, network)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=1e-4, fused=True)
    keep = workers > 0
    loader = DataLoader(
        _PILImages(dataset), batch, True, num_workers=workers, drop_last=True, persistent_workers=keep
    )

    def run(images: int) -> None:
        done = 0
        while done < images:
            for pixels, labels in loader:
                loss = F.cross_entropy(model(pixels.to(dataset.device)), labels.to(dataset.device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                done += len(labels)
                if done >= images:
                    return

    return run


def stock_sb3(
    algorithm: str, dataset: ImageDataset, network: str, batch: int, n_steps: int, epochs: int
) -> Callable[[int], None]:
    """Stock SB3 as its documentation teaches: ``make_vec_env`` and ``CnnPolicy`` with the same network."""
    env = make_vec_env("envs:ImageBandit-v0", n_envs=batch, env_kwargs={"dataset": dataset})
    mean, std = (tuple(values.tolist()) for values in dataset.channel_stats())
    policy_kwargs = {
        "features_extractor_class": ImageNetwork,
        "features_extractor_kwargs": {"network": network, "mean": mean, "std": std},
        "net_arch": [],
        "optimizer_class": torch.optim.AdamW,
    }
    shared = {
        "learning_rate": LEARNING_RATE,
        "n_steps": n_steps,
        "gamma": 0.0,
        "policy_kwargs": policy_kwargs,
    }
    if algorithm == "a2c":
        model = A2C("CnnPolicy", env, use_rms_prop=False, device=dataset.device, **shared)
    else:
        model = PPO("CnnPolicy", env, batch_size=batch, n_epochs=epochs, device=dataset.device, **shared)
    return lambda images: model.learn(images, reset_num_timesteps=False) and None


def single_file_ppo(
    dataset: ImageDataset, network: str, batch: int, n_steps: int, epochs: int
) -> Callable[[int], None]:
    """PPO in one loop over storage tensors and a NumPy environment, the way single-file implementations are written."""
    device = dataset.device
    task = ImageTask(dataset, batch, order="epoch")
    task.reset(seed=0)
    agent = classifier_of(dataset, network)
    value = nn.Linear(agent.body.features_dim, 1).to(device)
    parameters = [*agent.parameters(), *value.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, eps=1e-5)
    shape = (n_steps, batch)

    def act(images: Tensor) -> tuple[torch.distributions.Categorical, Tensor]:
        features = agent.body(images.float() / 255)
        return torch.distributions.Categorical(logits=agent.head(features)), value(features)[:, 0]

    def rollout() -> None:
        images = torch.zeros((*shape, *dataset.shape), dtype=torch.uint8, device=device)
        scalars = {name: torch.zeros(shape, device=device) for name in ("log_probs", "values", "rewards")}
        actions = torch.zeros(shape, dtype=torch.int64, device=device)
        observation = task.observe().cpu().numpy()
        for step in range(n_steps):
            images[step] = torch.from_numpy(np.asarray(observation)).to(device)
            with torch.no_grad():
                policy, scalars["values"][step] = act(images[step])
                actions[step] = policy.sample()
                scalars["log_probs"][step] = policy.log_prob(actions[step])
            rewards, _ = task.step(actions[step])
            scalars["rewards"][step] = torch.from_numpy(rewards.cpu().numpy()).to(device)
            observation = task.observe().cpu().numpy()
        advantages = scalars["rewards"] - scalars["values"]
        data = {
            "images": images.flatten(0, 1),
            "actions": actions.flatten(),
            "log_probs": scalars["log_probs"].flatten(),
            "advantages": advantages.flatten(),
            "returns": scalars["rewards"].flatten(),
        }
        for _ in range(epochs):
            _single_file_epoch(act, optimizer, parameters, data, batch)

    def run(images: int) -> None:
        for _ in range(-(-images // (n_steps * batch))):
            rollout()

    return run


def _single_file_epoch(
    act: Callable[[Tensor], tuple[torch.distributions.Categorical, Tensor]],
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    data: dict[str, Tensor],
    batch: int,
) -> None:
    """Visit every minibatch of the rollout ``data`` once."""
    for rows in torch.randperm(len(data["actions"]), device=data["actions"].device).split(batch):
        policy, values = act(data["images"][rows])
        ratio = (policy.log_prob(data["actions"][rows]) - data["log_probs"][rows]).exp()
        advantages = data["advantages"][rows]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = torch.max(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()
        loss = clipped + 0.5 * F.mse_loss(values, data["returns"][rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def image_policy_kwargs(
    dataset: ImageDataset, network: str, precision: str, compile: bool = False
) -> dict[str, object]:
    """The settings of our own policy that make it equal to the peers' networks."""
    mean, std = (tuple(values.tolist()) for values in dataset.channel_stats())
    return {
        "network": network,
        "mean": mean,
        "std": std,
        "precision": precision,
        "compile": compile,
        "optimizer_kwargs": {"weight_decay": 1e-4, "fused": True},
    }
