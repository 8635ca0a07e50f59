"""Networks, policies, and the plain classifiers inside them."""

from agents.models import architectures as _architectures  # noqa: F401 - registers the built-in networks
