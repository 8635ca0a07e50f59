"""What every attack shares: input checks, models, norms, losses, projections, random numbers, results."""
