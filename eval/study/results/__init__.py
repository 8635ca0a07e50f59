"""What a study reports: tables, figures, claims."""
