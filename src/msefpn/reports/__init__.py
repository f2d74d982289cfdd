"""Files of runs to tables and plots."""
