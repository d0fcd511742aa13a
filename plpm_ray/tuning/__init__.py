"""Searching a learner's parameters by policy value: spaces from the configs, Ray Tune or one process, a ledger."""
