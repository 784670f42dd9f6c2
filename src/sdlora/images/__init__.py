"""Pictures: decoded in a process of their own, read, and their masks."""
