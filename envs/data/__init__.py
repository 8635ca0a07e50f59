"""Sources of data sets: readers, downloads, splits and the cache behind ``envs.datasets``."""
