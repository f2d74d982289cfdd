"""Grids of trainings: rows, budgets and seeds, each training in a process of its own; their comparison."""
