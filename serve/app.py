"""Entry point of `serve run serve.app:build bundle=runs/<run>/bundle` and of `serve deploy serve/iit.yaml`.

The arguments are the fields of `plpm_ray.serving.config.ServeArgs`, nested or dotted::

    serve run serve.app:build bundle=runs/iit policy.kind=epsilon policy.epsilon=0.05
"""

from plpm_ray.serving.deployment import build

__all__ = ["build"]
