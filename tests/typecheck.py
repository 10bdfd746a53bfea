"""The type checker that the tests put on the library's shapes: an int passes for a float, as everywhere in Python."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
