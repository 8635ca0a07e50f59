"""A directive that shows a command line's own help, so that the reference cannot disagree with the program."""

import os
import subprocess
import sys

from docutils import nodes
from docutils.parsers.rst import Directive


class CommandHelp(Directive):
    """``{command-help} agents.train`` shows what ``python -m agents.train --help-all`` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Run the command and return its help as one literal block."""
        environment = os.environ | {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
        command = [sys.executable, "-m", self.arguments[0], "--help-all"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise self.error(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-500:]}")
        return [nodes.literal_block(done.stdout, done.stdout, language="text")]


def setup(app: object) -> dict[str, bool]:
    """Register the directive with Sphinx."""
    app.add_directive("command-help", CommandHelp)  # type: ignore[attr-defined]
    return {"parallel_read_safe": True}
