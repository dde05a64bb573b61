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
COLOURS = _words("red blue green yellow white black pink purple")
PLACES = _words("park beach forest market garden river village school")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ANIMALS = _words("dog cat fox bear wolf mouse horse duck frog rabbit")
WEATHER = _words("sunny cloudy rainy windy snowy stormy foggy clear")
CITIES = _words(
    "Paris Rome Madrid Berlin Lisbon Athens Vienna Warsaw Budapest Oslo Stockholm Helsinki Copenhagen Dublin London "
    "Edinburgh Brussels Moscow Kyiv Ankara Cairo Nairobi Rabat Accra Tokyo Beijing Delhi Bangkok Hanoi Ottawa Lima"
)
COMMON = _words(
    "about after again all also always another any around ask away back because been before began best better "
    "between body both bring build business buy call came cause change clear close cold come could country cut did "
    "different do does done down draw each early earth ease eat end enough even ever every example eye face fall "
    "family far farm fast father feel few field figure final follow food foot force form found four free from full "
    "game gave get girl give go govern great ground group grow half hand hard head hear heat help here hold home "
    "hot hour idea inch interest island just keep kind knew know land language large last laugh late law lead learn "
    "leave left letter life light like line list little live long look low machine made make man many mark may mean "
    "measure men might mile mind minute miss more most mother mountain move much must name near need never next "
    "night north note nothing notice noun now number object often oil old once only open order other our out over "
    "own page paper part pass pattern people person picture piece place plan plane plant play point port pose "
    "possible power press problem produce product pull question quick rain ran reach ready real record remember "
    "rest right river rock room round rule run same saw say school sea second seem self sentence serve set several "
    "shape she should side simple since size slow small some soon sound south special spell stand start state stay "
    "step still stood stop street strong study such sure surface system table take talk teach tell than thing think "
    "thought thousand through time together too top toward town travel true try turn under unit until use usual "
    "vowel voice wait walk want warm watch water way week weight west wheel where which while white whole why "
    "wonder wood word work world would write year yes young"
)
