"""The chat layer: conversations in, messages out. Framework-neutral; every adapter is a thin face of it."""
