"""The simulated world of a many-page app, where the truth is known, and the experiments run on it."""
