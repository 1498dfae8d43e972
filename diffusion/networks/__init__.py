"""Networks behind one fence: nothing outside this package imports flax."""
