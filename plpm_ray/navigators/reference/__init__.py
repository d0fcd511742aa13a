"""Reference learners: what a new method has to beat."""
