"""One attack on one classifier, stored per image."""
