"""The process that runs one task in its seat: at a job, under measurement, or handing its training over."""
