"""Train one LoRA: the only loop, and what it is made of."""
