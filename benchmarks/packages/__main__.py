"""Entry point of ``python -m benchmarks.packages``: a package, as importing ``benchmarks`` imports it first."""

from benchmarks.packages import check

check()
print("nothing is missing")
