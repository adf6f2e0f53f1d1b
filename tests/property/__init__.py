"""Random operations on stores, held against a plain model."""
