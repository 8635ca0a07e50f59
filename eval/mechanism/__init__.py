"""Why a classifier resists: gradients, landscapes, entropy."""
