"""The parts of a study: grid, cells, engines, tables, plots and claims."""
