"""plpm_ray: personalised landing pages on Ray, from app logs to a served decision."""

__version__ = "0.1.0"
