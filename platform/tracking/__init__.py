"""Record runs in MLflow."""
