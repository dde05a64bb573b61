"""A fleet as discrete events: arrivals, routers, replicas that plan as the engine does, steps by the roofline."""
