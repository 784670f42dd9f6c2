"""LoRAs: their types, how they are put into a base, and the files they are kept in."""
