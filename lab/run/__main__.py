"""`python -m lab.run`."""

from lab.run.runner import main

main()
