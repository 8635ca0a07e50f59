"""What a study consists of: configuration, cells, stages."""
