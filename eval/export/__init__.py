"""Export of a classifier to formats that other programs read; every file is loaded and compared with the model."""
