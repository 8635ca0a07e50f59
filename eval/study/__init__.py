"""The parts of a study: grid, cells, engines, tables, figures and reading."""
