"""`unmask bench simulate`: a fleet under load as discrete events: how many replicas, and how long a wait."""
