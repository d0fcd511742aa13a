"""Scores -> distribution -> page and propensity: the only place where a page is drawn."""
