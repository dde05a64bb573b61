"""The words that the families draw from. Data only; their order is part of what a seed means."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("Tom Mia Sam Ann Ben Lucy Max Eva Leo Nina Paul Rosa Jack Kate Tim Lily")
GOODS = _words("apples pears plums coins cards pens shells stamps books cakes")
THINGS = _words("kite ball drum hat boat book cake lamp map cup bell coat ring flute basket puppet")
NOUNS = _words(
    "sun moon star tree leaf rain snow wind fire lake hill road door chair table clock glass bread milk egg rice soup "
    "salt fish bird cat dog cow pig fox bear wolf mouse horse duck bee frog house boat train car bike plane ship king "
    "queen child friend song game box key pen coin shoe sock shirt flag rope nail"
)
