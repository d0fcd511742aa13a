"""`plpm train` as a Ray job: `ray job submit --working-dir . -- python jobs/train.py [CONFIG] [key=value ...]`.

`navigator=klan` without a config takes `train_klan.yaml`."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the uploaded working directory need not be installed on the cluster

from plpm_ray.cli.jobs import main  # noqa: E402

if __name__ == "__main__":
    main("train", default=HERE / "train.yaml")
