"""Complex numbers of a step: what depends on rows becomes two real numbers each."""
