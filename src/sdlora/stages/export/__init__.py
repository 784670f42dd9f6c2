"""From a trained state to the files people use."""
