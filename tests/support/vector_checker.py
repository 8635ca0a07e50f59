"""A checker for vector environments: every batch must equal scalar environments, step by step."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

Seed = int | Sequence[int] | None


def check_vector_env(
    vector_env: VectorEnv,
    make_scalar: Callable[[], gym.Env],
    *,
    steps: int = 30,
    seed: int = 123,
    rtol: float = 0.0,
) -> None:
    """Step a vector environment beside scalar ones and compare all that they return.

    The scalar environments run in Gymnasium's ``SyncVectorEnv``, in the autoreset mode that the vector environment
    declares. Checked: the spaces and metadata; ``reset`` with an integer s (environment i behaves like a scalar one
    seeded with s + i), with a list of seeds, and without a seed in mid-run; observations, rewards, terminations and
    truncations, their shapes and types; infos with their masks, ``final_obs`` and ``final_info`` included; that a
    seed repeats its run; and that no returned array is written to later. Actions are drawn from the action space.

    Args:
        vector_env: the environment to check; it is reset and stepped, and left open. Tensors count as arrays, and
            their floats may be of lower precision.
        make_scalar: makes one scalar environment, configured alike.
        steps: how many steps to compare after each of the resets.
        seed: the first seed used.
        rtol: relative tolerance of observations, rewards and infos that are floats.

    Raises:
        AssertionError: what differs, where, and how.

    Example:
        >>> vector_env = gym.make_vec("envs:ImageBandit-v0", 3, vectorization_mode="vector_entry_point")
        >>> check_vector_env(vector_env, lambda: gym.make("envs:ImageBandit-v0"))
    """
    count = vector_env.num_envs
    mode: Any = vector_env.metadata.get("autoreset_mode")
    _require(isinstance(mode, AutoresetMode), f'metadata["autoreset_mode"] is {mode!r}, not an AutoresetMode')
    scalars = SyncVectorEnv([make_scalar] * count, autoreset_mode=mode)
    try:
        _check_spaces(vector_env, scalars)
        pair = _Pair(vector_env, scalars, rtol)
        seeds: list[Seed] = [seed, None, [seed + 7 * i * i + 3 for i in range(count)], seed]
        runs = [pair.run(start, steps, f"after reset(seed={start})", action_seed=seed) for start in seeds]
        for first, again in zip(runs[0], runs[-1], strict=True):
            _require(_equal(first, again, 0), f"two runs from reset(seed={seed}) differ")
        pair.check_kept()
    finally:
        scalars.close()


class _Pair:
    """A vector environment and its reference, driven together."""

    def __init__(self, vector_env: VectorEnv, scalars: SyncVectorEnv, rtol: float) -> None:
        self.vector_env = vector_env
        self.scalars = scalars
        self.rtol = rtol
        self.kept: list[tuple[str, np.ndarray, np.ndarray]] = []

    def run(self, seed: Seed, steps: int, where: str, action_seed: int) -> list[np.ndarray]:
        """Reset and step both, compare, and return copies of the observations."""
        start: Any = seed  # VectorEnv's own signature leaves out the lists of seeds that its heirs take
        got: tuple[Any, ...] = self.vector_env.reset(seed=start)
        expected: tuple[Any, ...] = self.scalars.reset(seed=start)
        self._compare(("observations", "infos"), got, expected, where)
        self.scalars.action_space.seed(action_seed)
        history = [_array(got[0]).copy()]
        done = np.zeros(self.scalars.num_envs, dtype=bool)
        for step in range(steps):
            here = f"step {step} {where}"
            if self.vector_env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and done.any():
                restarted = [
                    env.reset(options={"reset_mask": done.copy()}) for env in (self.vector_env, self.scalars)
                ]
                self._compare(
                    ("observations", "infos"), restarted[0], restarted[1], f"reset_mask before {here}"
                )
            actions = self.scalars.action_space.sample()
            got = self.vector_env.step(_like(got[0], actions))
            expected = self.scalars.step(actions)
            self._compare(
                ("observations", "rewards", "terminations", "truncations", "infos"), got, expected, here
            )
            history.append(_array(got[0]).copy())
            done = expected[2] | expected[3]
        return history

    def check_kept(self) -> None:
        """Check that the arrays returned by all calls still hold what they held."""
        for name, array, copy in self.kept:
            _require(
                np.array_equal(array, copy), f"{name} were overwritten by a later call; return fresh arrays"
            )

    def _compare(
        self, names: Sequence[str], got: tuple[Any, ...], expected: tuple[Any, ...], where: str
    ) -> None:
        _require(
            isinstance(got, tuple) and len(got) == len(names),
            f"{where}: expected a tuple of {', '.join(names)}, got {type(got).__name__}",
        )
        for name, value, reference in zip(names, got, expected, strict=True):
            if name == "infos":
                _compare_infos(value, reference, self.rtol, where)
            else:
                self._compare_arrays(name, value, reference, where)

    def _compare_arrays(self, name: str, value: Any, reference: np.ndarray, where: str) -> None:
        array, is_tensor = _array(value), isinstance(value, torch.Tensor)
        _require(
            array.shape == reference.shape, f"{where}: {name} have shape {array.shape}, not {reference.shape}"
        )
        same_type = array.dtype.kind == reference.dtype.kind if is_tensor else array.dtype == reference.dtype
        _require(same_type, f"{where}: {name} are {array.dtype}, not {reference.dtype}")
        if name == "observations":
            space = self.scalars.single_observation_space
            _require(all(row in space for row in array), f"{where}: observations outside the space {space}")
        for i, (row, expected) in enumerate(zip(array, reference, strict=True)):
            if not _equal(row, expected, self.rtol):
                raise AssertionError(f"{where}: {name}[{i}] is {row}, the scalar's is {expected}")
        shared = [kept for kept, old, _ in self.kept if np.shares_memory(array, old)]
        _require(not shared, f"{where}: {name} share memory with earlier {shared}; return fresh arrays")
        self.kept = [*self.kept[-7:], (f"{name} of {where}", array, array.copy())]


def _check_spaces(vector_env: VectorEnv, scalars: SyncVectorEnv) -> None:
    for name in ("observation_space", "action_space"):
        single, reference = getattr(vector_env, f"single_{name}"), getattr(scalars, f"single_{name}")
        _require(single == reference, f"single_{name} is {single}, the scalar environment's is {reference}")
        batch, expected = getattr(vector_env, name), batch_space(reference, vector_env.num_envs)
        _require(batch == expected, f"{name} is {batch}, not {expected}")


def _compare_infos(infos: Any, reference: dict[str, Any], rtol: float, where: str) -> None:
    """Compare two infos dictionaries where their masks are true; what lies under a false mask says nothing."""
    _require(isinstance(infos, dict), f"{where}: infos are a {type(infos).__name__}, not a dict")
    _require(
        infos.keys() == reference.keys(),
        f"{where}: infos have the keys {sorted(infos)}, the scalars' {sorted(reference)}",
    )
    for key, expected in reference.items():
        if isinstance(expected, dict):
            _compare_infos(infos[key], expected, rtol, f"{where}, {key}")
            continue
        value = _array(infos[key])
        mask = reference.get(f"_{key}", np.ones(len(expected), dtype=bool))
        for i in mask.nonzero()[0]:
            if not _equal(value[i], expected[i], rtol):
                raise AssertionError(
                    f"{where}: infos[{key!r}][{i}] is {value[i]}, the scalar's is {expected[i]}"
                )


def _equal(value: Any, reference: Any, rtol: float) -> bool:
    value, reference = _array(value), np.asarray(reference)
    if value.shape != reference.shape:
        return False
    if reference.dtype.kind == "f":
        return np.allclose(value, reference, rtol=rtol, atol=0, equal_nan=True)
    return np.array_equal(value, reference)


def _array(value: Any) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _like(observations: Any, actions: np.ndarray) -> Any:
    """Return the actions as a tensor beside tensor observations, else as they are."""
    if not isinstance(observations, torch.Tensor):
        return actions
    return torch.as_tensor(actions, device=observations.device)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
