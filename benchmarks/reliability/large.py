"""Training on more data than memory: ``python -m benchmarks.reliability.large --gigabytes 20 --limit 1``.

A NumPy archive of that size (zeros, so that the file is sparse and takes no disk; its decoded copy takes all of it) is
prepared and trained on by ``python -m agents.train`` in a control group with that many GiB of memory, the mapped pages
that the kernel keeps for it included. Needs root, cgroups and Linux.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np

from benchmarks.reliability.page import record

SHAPE = (3, 64, 64)
_CHUNK = bytes(1 << 26)
_GROUP = Path("/sys/fs/cgroup/memory/labelbandit-large")


class SparseFile(io.FileIO):
    """Leaves a hole in place of every whole chunk of zeros."""

    def write(self, data) -> int:
        if len(data) != len(_CHUNK):
            return super().write(data)
        self.seek(len(_CHUNK), os.SEEK_CUR)
        return len(_CHUNK)


def write_archive(path: Path, images: int) -> None:
    """Write ``images`` black images with ten labels in turn, 64 MiB at a time."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (images, *SHAPE)}
    )
    left = images * int(np.prod(SHAPE))
    with SparseFile(path, "w") as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for start in range(0, left, len(_CHUNK)):
                member.write(_CHUNK[: min(len(_CHUNK), left - start)])
        labels = io.BytesIO()
        np.save(labels, np.arange(images) % 10)
        archive.writestr("labels.npy", labels.getvalue())


def run_limited(command: list[str], gibibytes: float) -> dict[str, float]:
    """Run the command under the limit and return seconds, status and the peaks of its memory in MiB."""
    _GROUP.mkdir(exist_ok=True)
    (_GROUP / "memory.limit_in_bytes").write_text(str(int(gibibytes * 2**30)))
    (_GROUP / "memory.max_usage_in_bytes").write_text("0")
    start = time.perf_counter()
    shell = ["sh", "-c", f'echo $$ > {_GROUP}/cgroup.procs; exec "$@"', "sh", *command]
    process = subprocess.Popen(shell)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    status = process.wait()
    watcher.join()
    usage = int((_GROUP / "memory.max_usage_in_bytes").read_text()) / 2**20
    return {
        "seconds": time.perf_counter() - start,
        "status": status,
        "peak_own_mib": peak[0] / 1024,
        "peak_with_page_cache_mib": usage,
    }


def _watch(process: subprocess.Popen, peak: list[int]) -> None:
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        kib = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        peak[0] = max([peak[0], *kib])
        time.sleep(0.05)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--limit", type=float, default=1, help="GiB of memory")
    parser.add_argument("--scratch", type=Path, help="where there is room; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        images = int(options.gigabytes * 1e9 / np.prod(SHAPE))
        write_archive(folder / "large.npz", images)
        size = (folder / "large.npz").stat().st_size
        print(f"{images:,} images, {size / 1e9:.1f} GB", flush=True)
        options_of_both = (
            "--algo supervised --network mlp --device cpu --no-progress --no-attack --total-images 6400"
        )
        train = [sys.executable, "-m", "agents.train", *options_of_both.split(), "--eval-every", "6400"]
        train += ["--batch-size=64", f"--dataset=npz:{folder}/large.npz", f"--data-root={folder}/root"]
        steps = {
            "first run (decodes a copy)": run_limited([*train, "--run-dir", f"{folder}/a"], options.limit),
            "second run (maps the copy)": run_limited([*train, "--run-dir", f"{folder}/b"], options.limit),
        }
    lines = [
        "## Data larger than memory",
        "",
        f"`python -m benchmarks.reliability.large --gigabytes {options.gigabytes:g} --limit {options.limit:g}`: "
        f"{images:,} images of {'x'.join(map(str, SHAPE))}, {size / 1e9:.1f} GB, "
        f"in a control group with {options.limit:g} GiB. Each run trains network `mlp` on 6,400 images "
        "and evaluates the whole validation and test splits "
        f"({images * 28 // 100:,} images).",
        "",
        "| | seconds | exit status | peak of the process's own memory, MiB | with the kernel's page cache, MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, f in steps.items():
        lines.append(
            f"| {name} | {f['seconds']:.0f} | {f['status']} | {f['peak_own_mib']:.0f} | "
            f"{f['peak_with_page_cache_mib']:.0f} |"
        )
    print("\n".join(lines))
    record(
        "large",
        {"images": images, "bytes": size, "limit_gib": options.limit, "runs": steps},
        "\n".join(lines),
    )
    return int(any(step["status"] for step in steps.values()))


if __name__ == "__main__":
    sys.exit(main())
