"""A small shop: an application of FastAPI and queue_kit from end to end. README.md says how to start it."""
