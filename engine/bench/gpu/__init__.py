"""What a GPU is asked within minutes: whether it computes right, waits where it should, and is as fast as predicted.

`command` runs the parts in their order and prints a verdict for each case; every part is a module that measures and
judges. `python -m engine.bench.gpu` needs none of the server's packages.
"""
