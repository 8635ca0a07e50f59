"""Is a classifier's resistance real? The audit, and its command line ``python -m eval.audit``."""

from typing import TYPE_CHECKING

from agents.common.command_line import run_cli
from envs.lazy_imports import lazy_names
from eval.audit.options import AuditCommand

if TYPE_CHECKING:
    from eval.audit.command import audit_command as audit_command
    from eval.audit.findings import Cause as Cause
    from eval.audit.findings import Finding as Finding
    from eval.audit.findings import Verdict as Verdict
    from eval.audit.report import AuditReport as AuditReport
    from eval.audit.run import audit as audit

_HOMES = {
    "eval.audit.command": ("audit_command",),
    "eval.audit.findings": ("Cause", "Finding", "Verdict"),
    "eval.audit.report": ("AuditReport",),
    "eval.audit.run": ("audit",),
}
__getattr__ = lazy_names(__name__, _HOMES)
__all__ = sorted(["AuditCommand", "main", *(name for names in _HOMES.values() for name in names)])


def __dir__() -> list[str]:
    return __all__


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli("eval.audit.command:audit_command", AuditCommand, "python -m eval.audit", argv)
