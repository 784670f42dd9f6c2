"""What write-ups claim, put to the test: `studies.yaml`."""
