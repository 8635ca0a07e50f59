"""What every evaluation shares: targets, threats, options, statistics, formatting."""
