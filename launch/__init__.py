"""One description of a job, and a text for each scheduler that can run it."""
