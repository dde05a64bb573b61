"""The least cost of decoding, by the roofline model. Measures nothing."""
