"""Is a classifier's resistance real? The audit, and its command line ``python -m eval.audit``."""

import importlib
from typing import TYPE_CHECKING, Any

from agents.common.command_line import run_cli
from eval.audit.options import AuditCommand

if TYPE_CHECKING:
    from eval.audit.command import audit_command as audit_command
    from eval.audit.findings import Cause as Cause
    from eval.audit.findings import Finding as Finding
    from eval.audit.findings import Verdict as Verdict
    from eval.audit.report import AuditReport as AuditReport
    from eval.audit.run import audit as audit

# Imported when first asked for, so that the command line answers before PyTorch is there.
_HOMES = {
    "eval.audit.command": ("audit_command",),
    "eval.audit.findings": ("Cause", "Finding", "Verdict"),
    "eval.audit.report": ("AuditReport",),
    "eval.audit.run": ("audit",),
}
__all__ = sorted(["AuditCommand", "main", *(name for names in _HOMES.values() for name in names)])


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_cli("eval.audit.command:audit_command", AuditCommand, "python -m eval.audit", argv)
