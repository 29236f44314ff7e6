"""From the command line and YAML to checked, plain Python values."""
