"""Lower bounds on the optimal value, and the certificate that they make of any point."""
