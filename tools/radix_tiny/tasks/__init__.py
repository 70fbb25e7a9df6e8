"""What the model learns, a module per family of tasks; each has a `make(source)` that draws a conversation."""
