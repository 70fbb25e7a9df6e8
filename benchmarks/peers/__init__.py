"""Our engine beside others, on the same machine, weights, token ids and workloads, in one run."""
