"""Loss terms, unweighted."""
