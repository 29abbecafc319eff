"""The benchmarks that come with the platform, one module for each kind of task."""
