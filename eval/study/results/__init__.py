"""What a study reports: tables, plots, claims."""
