"""KLAN, the Kuaishou landing-page adaptive navigator (2025); equation numbers in this folder are the paper's."""
