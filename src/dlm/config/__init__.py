"""params.yaml as frozen dataclasses."""
