"""osqueue beside other job queues, end to end: `python -m peers`. README.md of the folder above says how to read it."""
