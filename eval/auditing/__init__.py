"""The audit's parts: probes of the model, views of it, attacks that share one record, checks, and the verdict."""
