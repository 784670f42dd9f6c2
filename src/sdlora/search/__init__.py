"""`sdlora search`: settings are tried and measured, and what was learnt of them proposes the next ones."""
