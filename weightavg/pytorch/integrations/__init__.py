"""The averager as a callback of other libraries, each of them optional."""
