"""How model families write tool calls: one small file each, over `base`."""
