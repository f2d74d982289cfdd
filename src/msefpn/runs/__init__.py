"""The run folder and the terminal, which all verbs share."""
