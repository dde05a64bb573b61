"""What ended requests hand on to later ones that name them.

`sources` keeps them and says what is to be moved, `runs` finds equal tokens. Sees requests and pages, no tensors.
"""
