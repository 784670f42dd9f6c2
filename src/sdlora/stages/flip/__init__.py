"""Mirror pictures and join text, repeats and geometry into the set that is trained on."""
