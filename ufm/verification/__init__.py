"""What `ufm.verify` is made of: subjects, tolerances, and one module per kind of row."""
