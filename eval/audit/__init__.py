"""Is a classifier's resistance real? The audit, and its command line ``python -m eval.audit``."""

from agents.common.command_line import run_cli
from eval.audit.command import AuditCommand, audit_command
from eval.audit.findings import Cause, Finding, Verdict
from eval.audit.report import AuditReport
from eval.audit.run import audit

__all__ = ["AuditReport", "Cause", "Finding", "Verdict", "audit", "main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli(audit_command, AuditCommand, "python -m eval.audit", argv)
