"""Transfer of adversarial images from long-trained models: ``python -m benchmarks.mirage_transfer RUN [RUN ...]``.

Takes the last snapshot of every run, makes images on it by PGD (last iterate) under the cleverhans protocol and with
unit steps on the MIFPE loss, and writes which models still classify them correctly, per image, to
``docs/results/trajectory/transfer.json``. All runs must be for the same images.
"""

from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from agents.common.protocols import CLEVERHANS_BATCH, default_eps
from agents.common.run_dir import RunDir
from attacks import pgd
from benchmarks.mirage import FOLDER
from envs.files import write_json
from eval.core.options import DataOptions
from eval.core.records import bits, share
from eval.core.targets import Target
from eval.trajectory.measure import regime_name, snapshots

CRAFTS: dict[str, dict[str, Any]] = {
    "paper": {"protocol": "cleverhans", "averaged_over": CLEVERHANS_BATCH},
    "strong": {"loss": "mifpe"},
}


@torch.inference_mode()
def _right(target: Target, images: Tensor, labels: Tensor) -> str:
    return bits((target.model(images).argmax(1) == labels).numpy())


def main(runs: tyro.conf.Positional[tuple[Path, ...]], n: int = 200) -> None:
    """Craft on every run, show to every run, and write the outcomes per image."""
    targets: dict[str, Target] = {}
    labels = {}
    for path in runs:
        run = RunDir.open(path)
        ((_, target),) = snapshots(run, points=1).items()
        targets[path.name] = target
        config = run.config["config"]
        labels[path.name] = {"regime": regime_name(config), "seed": config["seed"]}
    samples = DataOptions(n=n).load(next(iter(targets.values())))
    x, y = samples.batch(slice(None), torch.device("cpu"))
    eps = default_eps("L2", samples.channels)
    rows = []
    for source, maker in targets.items():
        for craft, options in CRAFTS.items():
            attacked = pgd(
                maker.model,
                x,
                y,
                norm="L2",
                eps=eps,
                step_size=eps / 10,
                keep="last",
                early_stop=False,
                sample_ids=samples.indices,
                **options,
            ).adversarial
            for name, target in targets.items():
                right = _right(target, attacked, y)
                rows.append({"craft": craft, "source": source, "target": name, "right": right})
                print(f"{craft:7} {source:>16} -> {name:16} {share(right):.1%}", flush=True)
    FOLDER.mkdir(exist_ok=True)
    content = {
        "format": 1,
        "threat": f"L2 {eps:g}",
        "data": samples.record() | {"indices": samples.indices.tolist()},
    }
    write_json(FOLDER / "transfer.json", content | {"models": labels, "rows": rows})


if __name__ == "__main__":
    tyro.cli(main)
