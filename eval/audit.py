"""Is a classifier's resistance real? The audit, and its command line ``python -m eval.audit``."""

import sys

from agents.cli import run_cli
from eval.auditing.command import AuditCommand, audit_command
from eval.auditing.course import audit
from eval.auditing.findings import Cause, Finding, Verdict
from eval.auditing.report import AuditReport

__all__ = ["AuditReport", "Cause", "Finding", "Verdict", "audit", "main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli(audit_command, AuditCommand, "python -m eval.audit", argv)


if __name__ == "__main__":
    sys.exit(main())
