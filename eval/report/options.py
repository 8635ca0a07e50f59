"""The command line ``python -m eval.report``: its options."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from agents.common.command_line import run_cli


@dataclass(frozen=True)
class ReportCommand:
    """Write one self-contained HTML page about a study or a single run."""

    directory: tyro.conf.Positional[Path]
    """Directory of a study (with study.json) or of a run (with config.json)."""
    out: Path | None = None
    """The page. Default: report.html in the directory."""
    images: int = 8
    """Adversarial images shown per regime."""
    megabytes: int = 40
    """Most megabytes of pictures in the page; what does not fit is named in it."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli("eval.report.command:report_command", ReportCommand, "python -m eval.report", argv)
