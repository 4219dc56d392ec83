"""Submissions that the claims compare with; no part of the package."""
