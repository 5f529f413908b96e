"""hospital: the digits and the cells app as one federation."""
