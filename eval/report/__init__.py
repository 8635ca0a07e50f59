"""The report: one HTML page from a study's or a run's directory."""
