"""What every other room stands on: pages, configs, errors, storage, feature specs, the registry."""
