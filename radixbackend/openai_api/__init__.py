"""The OpenAI-compatible API: one dispatch that an HTTP server and the in-process client share."""
