"""In the place of pandas, for the processes that tests start: Reelmill does not ask for it, and
PyArrow would import it wherever it is, which takes as long as all of distributed."""

raise ImportError("pandas is hidden from the processes of tests")
