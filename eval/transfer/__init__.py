"""Transfer: adversarial images made on every model and shown to every other."""
