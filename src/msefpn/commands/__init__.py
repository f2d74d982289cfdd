"""The public functions: one signature and one docstring each; the command line reads them."""
