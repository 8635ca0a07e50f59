"""Networks, policies, and the plain classifiers inside them."""
