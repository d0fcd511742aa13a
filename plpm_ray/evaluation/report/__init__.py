"""The report that people read: one self-contained HTML file from any mix of run folders."""

from plpm_ray.evaluation.report.page import render, write
from plpm_ray.evaluation.report.reading import Run, read_run

__all__ = ["Run", "read_run", "render", "write"]
