"""Models of their own, solved by way of `ufm.model.problem.Problem` and certified in their own terms."""
