"""Where data sets come from: readers, downloads, splits and the cache behind ``envs.datasets``."""
