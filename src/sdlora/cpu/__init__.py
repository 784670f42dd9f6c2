"""What makes small networks fast on a CPU."""
