"""Units: what can be removed whole, found by following atoms through the graph."""
