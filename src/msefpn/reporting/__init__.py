"""Reports: a run or several on one page, and the page of a data set."""
