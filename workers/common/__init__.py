"""General tools below every other package: files, names, secrets, text, settings."""
