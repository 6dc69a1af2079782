"""Generate a feature: the code behind `make feature`. See docs/adding-a-feature.md."""
