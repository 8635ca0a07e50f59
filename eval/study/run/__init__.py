"""How a study runs: stages, engines, scheduler."""
