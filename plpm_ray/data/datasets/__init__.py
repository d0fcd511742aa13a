"""Dataset adapters: one file per official layout, found by their registered names."""
