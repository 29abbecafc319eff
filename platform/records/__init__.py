"""What a run leaves on disk: its directory and the manifests of its stages."""
