"""The order in which environments show images, and the choice of evaluated images, as pure functions."""

from collections.abc import Callable

import torch
from torch import Tensor

from envs.rng import hash_ints, hash_tensor, to_int64

ORDERS = ("iid", "epoch")
AUGMENT_STREAM = 1
_SHUFFLE_STREAM = 2
_SAMPLE_STREAM = 0x73616D706C65  # "sample": which images are attacked depends on neither seed nor attack
_BLOCK = 16384  # draws at once: hashing costs some thirty small operations for any number of draws


class Deal:
    """The images dealt to n environments.

    At its time t, environment i with seed s shows image ``hash(s, t) mod N`` (``order="iid"``), or the image at
    position ``(t * m + k) * n + i`` of an endless sequence of shuffled passes over the images
    (``order="epoch"``, shard k of m: these environments are the k-th n of m * n). ``seeds``: int64 (n,), one per
    environment; their device is where everything is computed; ``augmented``: whether augmentation seeds are needed;
    else they are zeros; ``derive``: what else is shown, from images and augmentation seeds; called once a block.
    """

    def __init__(
        self,
        seeds: Tensor,
        num_images: int,
        *,
        order: str = "iid",
        shard: tuple[int, int] = (0, 1),
        augmented: bool = False,
        derive: Callable[[Tensor, Tensor], tuple[Tensor, ...]] | None = None,
    ) -> None:
        self.seeds, self.num_images, self.augmented = seeds, num_images, augmented
        self.order, self.shard, self.derive = order, shard, derive
        # All shards shuffle alike: by the seed that the first environment of the first shard has.
        self._shuffle_seed = to_int64(int(seeds[0]) - shard[0] * len(seeds))
        self._rows = max(1, _BLOCK // len(seeds))
        self._block = -1
        self._first_epoch = 0
        self._permutations = seeds.new_empty(0, num_images)

    def shown(self, time: int | Tensor) -> tuple[Tensor, ...]:
        """Return the images shown and their augmentation seeds, int64 (n,) each, and what ``derive`` makes of them.

        ``time``: the number of draws before, for all environments, or int64 (n,), each one's own; in ``"epoch"`` order
        the latter waits for the device.
        """
        if isinstance(time, Tensor):
            span = (int(time.min()), int(time.max())) if self.order == "epoch" else (0, 0)
            return self._draw(time, *span)
        block, row = divmod(time, self._rows)
        if block != self._block:
            first = block * self._rows
            times = torch.arange(self._rows, device=self.seeds.device).unsqueeze(1) + first
            self._drawn = self._draw(times, first, first + self._rows - 1)
            self._block = block
        return tuple(drawn[row] for drawn in self._drawn)

    def _draw(self, times: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Return what is shown at ``times``, which lie from ``first`` to ``last``."""
        if self.order == "iid":
            coordinates: tuple[int | Tensor, Tensor] = (self.seeds, times)
            indices = hash_tensor(*coordinates) % self.num_images
        else:
            part, parts = self.shard
            width = parts * len(self.seeds)
            rank = torch.arange(len(self.seeds), device=self.seeds.device) + part * len(self.seeds)
            positions = times * width + rank
            coordinates = (self._shuffle_seed, positions)
            self._shuffle(first * width // self.num_images, ((last + 1) * width - 1) // self.num_images)
            indices = self._permutations.take(positions - self._first_epoch * self.num_images)
        if self.augmented:
            augment_seeds = hash_tensor(*coordinates, AUGMENT_STREAM)
        else:
            augment_seeds = self.seeds.new_zeros(1).expand_as(indices)
        return indices, augment_seeds, *(self.derive(indices, augment_seeds) if self.derive else ())

    def _shuffle(self, first: int, last: int) -> None:
        """Have the permutations of the epochs from ``first`` to ``last``, keeping those at hand."""
        known = range(self._first_epoch, self._first_epoch + len(self._permutations))
        if first in known and last in known:
            return
        kept = self._permutations[first - known.start :] if first in known else self._permutations[:0]
        epochs = torch.arange(first + len(kept), last + 1, device=self.seeds.device).unsqueeze(1)
        images = torch.arange(self.num_images, device=self.seeds.device)
        drawn = order_of(hash_tensor(self._shuffle_seed, _SHUFFLE_STREAM, epochs, images))
        self._permutations = torch.cat([kept, drawn])
        self._first_epoch = first


def order_of(hashes: Tensor) -> Tensor:
    """Return a permutation (rows, N) that sorts each row of ``hashes``, int64 (rows, N), by all but its lowest bits.

    Those bits carry the position, so there are no ties and sorting values alone is enough: on a CPU NumPy's sort
    takes a fortieth of the time of a stable ``argsort``.
    """
    count = hashes.shape[1]
    low = 2 ** (count - 1).bit_length() - 1
    keys = (hashes & ~low) | torch.arange(count, device=hashes.device)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
        return keys & low
    return keys.sort(dim=1).values & low


def iid_draw(seed: int, time: int, num_images: int) -> tuple[int, int]:
    """Return the image index and augmentation seed of one environment, as ``Deal`` computes them for many."""
    return hash_ints(seed, time) % num_images, hash_ints(seed, time, AUGMENT_STREAM)


def choose_indices(total: int, n: int | None) -> Tensor:
    """Return ``n`` of ``range(total)``, increasing: the first n of one fixed shuffle, so that choices nest.

    The first n as stored would not do: image folders are sorted by class.
    """
    order = hash_tensor(_SAMPLE_STREAM, torch.arange(int(total))).argsort()
    return order[: total if n is None else n].sort().values


def spread(total: int, n: int) -> Tensor:
    """Return ``n`` of ``range(total)``, or all if they are fewer, increasing and evenly spaced, on the CPU.

    For a look at some of the images that :func:`choose_indices` left in the order of the data set.
    """
    count = min(int(n), total := int(total))
    return torch.arange(count) * total // max(count, 1)
