"""Every operation of the repositories, written once, as units of named queries: a class for each repository."""
