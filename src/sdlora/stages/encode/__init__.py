"""Encode pictures to latents once."""
