"""Random operations on stores, compared with a plain model."""
