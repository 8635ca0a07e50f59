"""Counter-based random numbers: a draw is a hash of its coordinates (seed, time, ...), on ints and tensors.

With no generator state, a scalar environment and row ``i`` of a batch of thousands see the same draws, on any
device, and a run resumes from its counters alone. The mixing function is the finaliser of SplitMix64 (Steele,
Lea, Flood 2014, "Fast splittable pseudorandom number generators"); each coordinate is added, then mixed.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def hash_ints(*values: int) -> int:
    """Return a hash of the integers, uniform on [0, 2**63); each counts modulo 2**64, their order matters.

    >>> hash_ints(0, 1) == hash_ints(0, 1) != hash_ints(1, 0)
    True
    """
    state = 0
    for value in values:
        state = _mix(state + value + _GAMMA)
    return state >> 1


def hash_tensor(*values: int | Tensor) -> Tensor:
    """Return ``hash_ints`` of every element of the broadcast int64 tensors; Python integers count as scalars.

    Returns:
        int64, of the broadcast shape, each element in [0, 2**63), on the device of the tensors given.
    """
    numbers = 0  # the state before the first tensor
    state: Tensor | None = None
    for value in values:
        if isinstance(value, Tensor):
            gamma = to_int64(_GAMMA + (numbers if state is None else 0))
            state = value + gamma if state is None else (state + value).add_(gamma)
        elif state is None:
            numbers = _mix(numbers + value + _GAMMA)
            continue
        else:
            state.add_(to_int64(value + _GAMMA))
        state.bitwise_xor_(_shift_right(state, 30)).mul_(to_int64(_MULTIPLIER_1))
        state.bitwise_xor_(_shift_right(state, 27)).mul_(to_int64(_MULTIPLIER_2))
        state.bitwise_xor_(_shift_right(state, 31))
    return torch.tensor(numbers >> 1) if state is None else _shift_right(state, 1)


def _mix(state: int) -> int:
    state &= _MASK
    state = ((state ^ (state >> 30)) * _MULTIPLIER_1) & _MASK
    state = ((state ^ (state >> 27)) * _MULTIPLIER_2) & _MASK
    return state ^ (state >> 31)


def to_int64(value: int) -> int:
    """Return the signed 64-bit integer that equals ``value`` modulo 2**64."""
    return ((value + (1 << 63)) & _MASK) - (1 << 63)


def _shift_right(state: Tensor, bits: int) -> Tensor:
    # int64 shifts copy the sign bit in; the mask makes the shift logical, as on unsigned integers.
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)
