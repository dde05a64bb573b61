"""`unmask bench roofline`: what a model can reach at most on given hardware, by arithmetic."""
