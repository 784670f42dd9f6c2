"""A drawn picture that moves."""
