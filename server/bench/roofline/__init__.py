"""`unmask bench roofline`: the most that a model can reach on given hardware, by arithmetic."""
