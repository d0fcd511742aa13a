"""`plpm assess` as a Ray job: `ray job submit --working-dir . -- python jobs/assess.py [CONFIG] [key=value ...]`."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the uploaded working directory need not be installed on the cluster

from plpm_ray.cli.jobs import main  # noqa: E402

if __name__ == "__main__":
    main("assess", default=HERE / "assess_glan.yaml")
