"""Which image each environment shows at each time: a pure function of seeds and time, computed in blocks."""

import torch
from torch import Tensor

from envs.rng import hash_ints, hash_tensor, to_int64

ORDERS = ("iid", "epoch")
AUGMENT_STREAM = 1
_SHUFFLE_STREAM = 2
_BLOCK = 16384  # draws at once: hashing costs some thirty small operations, whatever their number


class Deal:
    """The images dealt to n environments.

    At time t, environment i with seed s shows image ``hash(s, t) mod N`` (``order="iid"``), or the image at
    position ``(t * m + k) * n + i`` of an endless sequence of shuffled passes over the images
    (``order="epoch"``, shard k of m).

    Args:
        seeds: int64 (n,), one per environment; its device is where everything is computed.
        num_images: N.
        order: ``"iid"`` or ``"epoch"``.
        shard: ``(k, m)``: these environments are the k-th n of m * n.
        augmented: whether ``augment_seeds`` are needed; else they are zeros.
    """

    def __init__(
        self,
        seeds: Tensor,
        num_images: int,
        *,
        order: str = "iid",
        shard: tuple[int, int] = (0, 1),
        augmented: bool = False,
    ) -> None:
        self.seeds = seeds
        self.num_images = num_images
        self.order = order
        self.shard = shard
        self.augmented = augmented
        # All shards shuffle alike: by the seed that the first environment of the first shard has.
        self._shuffle_seed = to_int64(int(seeds[0]) - shard[0] * len(seeds))
        self._rows = max(1, _BLOCK // len(seeds))
        self._block = -1
        self._time = -1
        self._first_epoch = 0
        self._permutations = seeds.new_empty(0, num_images)

    def indices(self, time: int) -> Tensor:
        """Return the images shown at ``time``: int64 (n,)."""
        return self._row(time)[0]

    def augment_seeds(self, time: int) -> Tensor:
        """Return the augmentation seeds at ``time``: int64 (n,)."""
        return self._row(time)[1]

    def _row(self, time: int) -> tuple[Tensor, Tensor]:
        if time != self._time:
            block, row = divmod(time, self._rows)
            if block != self._block:
                self._draw(block)
            self._time, self._shown = time, (self._indices[row], self._augment_seeds[row])
        return self._shown

    def _draw(self, block: int) -> None:
        times = torch.arange(self._rows, device=self.seeds.device).unsqueeze(1) + block * self._rows
        if self.order == "iid":
            coordinates: tuple[int | Tensor, Tensor] = (self.seeds, times)
            self._indices = hash_tensor(*coordinates) % self.num_images
        else:
            part, parts = self.shard
            rank = torch.arange(len(self.seeds), device=self.seeds.device) + part * len(self.seeds)
            positions = times * (parts * len(self.seeds)) + rank
            coordinates = (self._shuffle_seed, positions)
            self._indices = self._shuffled(positions, block)
        if self.augmented:
            self._augment_seeds = hash_tensor(*coordinates, AUGMENT_STREAM)
        else:
            self._augment_seeds = self.seeds.new_zeros(1, 1).expand(self._rows, len(self.seeds))
        self._block = block

    def _shuffled(self, positions: Tensor, block: int) -> Tensor:
        """Return the image at each position of the endless shuffled sequence."""
        width = self.shard[1] * len(self.seeds)
        first = block * self._rows * width // self.num_images
        last = ((block + 1) * self._rows * width - 1) // self.num_images
        self._shuffle(first, last)
        return self._permutations.take(positions - first * self.num_images)

    def _shuffle(self, first: int, last: int) -> None:
        """Have the permutations of the epochs from ``first`` to ``last``, keeping those at hand."""
        known = range(self._first_epoch, self._first_epoch + len(self._permutations))
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
