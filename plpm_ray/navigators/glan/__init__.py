"""GLAN, the generative landing-page adaptive navigator (2026); equation numbers in this folder are the paper's."""
