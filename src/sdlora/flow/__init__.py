"""What makes the DAG true: jobs and their recipes, hashes, freshness, code identity, locks and the store."""
