"""Judging policies on logs: off-policy estimators, their models, metrics, tables, and when to refuse."""
