"""Types that all other rooms of the engine share: configuration, errors, parameters, requests, plans, outputs.

Data and protocols, and pure functions of numbers (noise, ranking, density, histograms). Sees no other room, no tensor
and no device: code that plans or decides without the model needs nothing else. Add here only what at least two rooms
must agree on.
"""
