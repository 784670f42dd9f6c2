"""Take a LoRA from elsewhere, or several at once, in the place of a training."""
