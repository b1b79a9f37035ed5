"""Parts that are built on the queue and asked for by an extra: files, sessions."""
