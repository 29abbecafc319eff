"""From a YAML file to a resolved spec."""
