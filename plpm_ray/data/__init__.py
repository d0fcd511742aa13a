"""From logs to training tables: contract, validation, sessions, point-in-time features, partitions by day and bucket."""
