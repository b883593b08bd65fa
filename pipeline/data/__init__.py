"""Batches: named data sets and a user's own, in an order that only the seed decides."""
