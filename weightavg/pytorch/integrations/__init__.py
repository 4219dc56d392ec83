"""The averager inside other libraries' training loops; each module is optional."""
