"""The words that all other rooms of the engine speak: configuration, errors, parameters, requests, plans, outputs.

Data and protocols, and pure functions of numbers (noise, ranking, density, histograms). Sees no other room, no tensor
and no device: whoever plans or decides without the model needs nothing else. Add here what two rooms must agree on, and
nothing that only one of them needs.
"""
