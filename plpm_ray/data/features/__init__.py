"""Point-in-time features, one definition: from tables (`batch`) and from per-user state (`state`), bit for bit."""
