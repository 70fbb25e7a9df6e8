"""Where every name, number and wording of the generated text comes from.

Rules. A `Source` draws from one of two worlds, training and held-out, which share no name (of a person, a place, a
product, a company) and no invented word; where wordings are new too, no sentence frame, tool or parameter either. Lists
are split by position, invented words by a checksum. What the model has to know by heart (capitals, sums, words of
feeling and of topics) is shared. One seed, one text.
"""

# ruff: noqa: RUF001 -- Turkish has an i without a dot.

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

HELD_OUT_SHARE = 6
"""One in so many list entries and invented words belongs to the held-out world."""


def split(text: str) -> list[str]:
    """The words of a text, so that a long list can be read."""
    return text.split()


FIRST_NAMES = split("""
Alice Ben Clara Daniel Emma Frank Grace Henry Isla Jack Karen Liam Maria Noah Olivia Peter Quinn Rachel Samuel Tina
Ulrich Victor Wendy Xavier Yara Zoe Amelia Bruno Carlos Diana Elif Fatma Gustav Hans Ingrid Jonas Kemal Leyla Mehmet
Nina Omar Priya Rosa Stefan Tariq Uma Vera Walter Yusuf Ahmet Ayşe Burak Can Deniz Ece Gökhan Hakan İbrahim Kerem
Mustafa Nazlı Orhan Özgür Pınar Selin Şule Tolga Umut Volkan Zeynep Çağla Hiroshi Yuki Wei Mei Ravi Anita Lars Sofia
Elena Marco Luca Giulia Pierre Chloé André Zoë José Marta Agnes Oskar Tomas Eva Irina Boris Olga Dmitri Ana Pedro
""")
LAST_NAMES = split("""
Smith Jones Taylor Brown Walker Wright Green Hall Clark Baker Turner Hill Cooper Ward Morris Price Bell Foster Gray
Hughes Mason Reed Stone Wells Yılmaz Demir Çelik Şahin Kaya Aydın Öztürk Arslan Doğan Kılıç Aslan Koç Güneş Yıldız
Müller Schmidt Weber Becker Fischer Rossi Bianchi Moreau Dubois García López Silva Santos Novak Kowalski Nowak
Ivanov Petrov Tanaka Suzuki Sato Chen Wang Zhang Kim Park Singh Patel Khan Haddad Okafor Mensah Larsen Nilsson
Jensen
""")
CITIES = [
    *split("""
London Paris Berlin Madrid Rome Vienna Prague Warsaw Lisbon Dublin Oslo Athens Ankara İstanbul İzmir Bursa Antalya
Konya Trabzon Tokyo Osaka Seoul Beijing Delhi Mumbai Cairo Nairobi Lagos Toronto Chicago Boston Seattle Denver
Austin Dallas Miami Atlanta Portland Sydney Melbourne Munich Hamburg Milan Naples Turin Lyon Nice Porto Geneva
Zurich Bergen Gdansk Brno Riga Vilnius Tallinn Helsinki Stockholm Malmö Odense Ghent Bruges Leeds York Bath Oxford
Cardiff
"""),
    "New York",
    "Los Angeles",
    "Buenos Aires",
    "Hong Kong",
    "Cape Town",
    "San Diego",
    "Santa Fe",
    "Las Vegas",
]
STATES = split("""
AL AZ CO FL GA IL KS MA MD MI MN NJ NV NY OH OR PA TX UT VA WA WI
""")
JOBS = [
    *split("""
engineer teacher doctor nurse lawyer baker chef farmer pilot painter carpenter plumber electrician dentist architect
journalist librarian musician writer actor dancer designer programmer accountant gardener mechanic tailor translator
photographer biologist chemist firefighter waiter cashier banker economist geologist surgeon pharmacist sailor
"""),
    "data scientist",
    "truck driver",
    "project manager",
    "police officer",
    "bus driver",
    "graphic designer",
]
JOBS_TR = {
    "mühendis": "mühendistir",
    "öğretmen": "öğretmendir",
    "doktor": "doktordur",
    "hemşire": "hemşiredir",
    "avukat": "avukattır",
    "aşçı": "aşçıdır",
    "pilot": "pilottur",
    "mimar": "mimardır",
    "gazeteci": "gazetecidir",
    "yazar": "yazardır",
    "ressam": "ressamdır",
    "çiftçi": "çiftçidir",
    "terzi": "terzidir",
    "şoför": "şofördür",
    "berber": "berberdir",
    "eczacı": "eczacıdır",
    "garson": "garsondur",
    "müzisyen": "müzisyendir",
    "marangoz": "marangozdur",
    "tercüman": "tercümandır",
    "oyuncu": "oyuncudur",
    "bankacı": "bankacıdır",
    "veteriner": "veterinerdir",
    "kaptan": "kaptandır",
    "psikolog": "psikologdur",
    "diş hekimi": "diş hekimidir",
}
GOODS = split("""
lamp chair table keyboard monitor mouse phone camera backpack jacket shirt bottle mug kettle toaster blender vacuum
bicycle helmet tent watch wallet notebook pen printer speaker headphones charger drone guitar piano pillow blanket
sofa mirror umbrella scarf gloves boots sandals shovel hammer drill ladder candle vase basket clock fan heater
""")
ADJECTIVES = split("""
wireless compact portable wooden leather digital classic modern smart foldable electric ceramic steel cotton silent
ultra mini solar vintage rugged
""")
COLORS = split("""
red blue green black white yellow purple orange pink brown grey silver golden turquoise
""")
MONTHS = split("""
January February March April May June July August September October November December
""")
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
EVENT_KINDS = split("""
conference workshop concert festival exhibition meetup seminar marathon fair summit lecture auction gala tournament
""")
STREET_KINDS = ["Street", "Road", "Avenue", "Lane", "Drive", "Square", "Boulevard", "Way"]
CURRENCIES = ["USD", "EUR", "GBP", "TRY", "JPY", "CHF", "SEK", "INR", "CAD", "AUD"]
LANGUAGES = ["French", "German", "Turkish", "Spanish", "Italian", "Japanese", "Korean", "Arabic", "Dutch", "Polish"]
WEATHER = split("""
sunny cloudy raining snowing windy foggy clear stormy mild hot cold dry
""")

_ONSETS = split("""
b br c ch cl d dr f fl g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sn sp st t th tr v w x y z
""")
_VOWELS = split("""
a e i o u a e i o u ai ea ee ia io oo ou y
""")
_CODAS = ["", "", "", "", "n", "r", "l", "s", "t", "m", "k", "x", "nd", "rt", "ck", "th", "v", "z", "sh"]
_TURKISH_ONSETS = split("""
b c ç d f g h k l m n p r s ş t v y z
""")
_TURKISH_VOWELS = ["a", "e", "ı", "i", "o", "ö", "u", "ü"]
_TURKISH_CODAS = ["", "", "", "n", "r", "l", "k", "ğ", "ş", "z", "t", "m", "y"]
_ACCENTED = "áéíóúàèäëïöüñçøåãõâêîôûłśžčř"


_ENDINGS = split("""
s son sen man ton ley er ing ford well a o i ov ski oğlu
""")

_LISTED = frozenset((*FIRST_NAMES, *LAST_NAMES, *CITIES))
_GOODS = frozenset(word.lower() for word in (*ADJECTIVES, *GOODS, *COLORS, *JOBS, *EVENT_KINDS, *STATES, *WEATHER))


class Later(str):
    """A wording that was added when the tokenizer was there already: the text that made that has none of them."""

    __slots__ = ()


def later(*wordings: str) -> tuple[Later, ...]:
    return tuple(map(Later, wordings))


def part(options: Sequence[T], *, held_out: bool) -> Sequence[T]:
    """One world's part of a list; a short list (under six) is not split."""
    if len(options) < HELD_OUT_SHARE:
        return options
    last = HELD_OUT_SHARE - 1
    return [option for at, option in enumerate(options) if (at % HELD_OUT_SHARE == last) == held_out]


def _is_held_out(word: str) -> bool:
    return zlib.crc32(word.encode()) % HELD_OUT_SHARE == 0


class Source:
    """Draws from one seed.

    Args:
        seed: what everything drawn follows from.
        held_out: draw the names and invented words that training never shows.
        new_wordings: draw the wordings that training never shows; by default, as `held_out`.
        inventive: all that the tokenizer's text has not: names of goods, and cities in Turkish text, may be invented,
            last names go on, and wordings that are `Later` are drawn.
        pieces: invented words are made of these, too: of a tokenizer's, so that training has each of them copied.
    """

    def __init__(
        self,
        seed: int | str,
        *,
        held_out: bool = False,
        new_wordings: bool | None = None,
        inventive: bool = True,
        pieces: Sequence[str] = (),
    ) -> None:
        self.rng = random.Random(f"{seed}/{held_out}")
        self.held_out = held_out
        self.inventive, self.pieces = inventive, pieces
        self.new_wordings = held_out if new_wordings is None else new_wordings

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def number(self, low: int, high: int) -> int:
        return self.rng.randint(low, high)

    def any(self, options: Sequence[T]) -> T:
        """One of what both worlds share."""
        options = self._in_use(options)
        return options[int(self.rng.random() * len(options))]

    def of(self, options: Sequence[T]) -> T:
        """One wording of this world's part of a list; of a short list (under six) both worlds have all."""
        return self.any(part(self._in_use(options), held_out=self.new_wordings))

    def _in_use(self, options: Sequence[T]) -> Sequence[T]:
        return options if self.inventive else [option for option in options if not isinstance(option, Later)]

    def word_of(self, options: Sequence[str]) -> str:
        """One name or word of this world's part of a list."""
        return self.any(part(options, held_out=self.held_out))

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return self.rng.sample(list(options), len(options))

    def some(self, options: Sequence[T], low: int, high: int) -> list[T]:
        return self.rng.sample(list(options), min(len(options), self.number(low, high)))

    def fresh(self, make: Callable[[], str]) -> str:
        """What `make` gives, until it falls into this world: a held-out word does so in whatever case it is written."""
        while True:
            word = make()
            cases = (word, word.lower(), word.capitalize(), word.upper()) if self.held_out else (word,)
            if _LISTED.isdisjoint(cases) and all(_is_held_out(case) == self.held_out for case in cases):
                return word

    def invented(self, low: int = 1, high: int = 3) -> str:
        """A lower-case word that no list has."""
        if self.pieces and self.chance(0.6):
            return self.fresh(self._of_pieces)
        return self.fresh(lambda: self._syllables(self.number(low, high)))

    def proper(self) -> str:
        """An invented capitalized word; now and then with letters outside ASCII."""
        draw = self.rng.random()
        if draw < 0.2:
            return self.fresh(lambda: self._turkish(self.number(2, 3)))
        if draw < 0.3:
            return self.fresh(
                lambda: "".join(self.any(_ACCENTED + "aeiourstnlm") for _ in range(self.number(4, 7))).title()
            )
        return self.invented(1, 3).capitalize()

    def code(self) -> str:
        """A random identifier: letters and digits without pattern."""
        alphabet = self.any(
            ("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", "abcdefghijklmnopqrstuvwxyz0123456789", "0123456789")
        )
        if self.pieces and self.chance(0.15):  # letters that come again and again
            alphabet = "".join(self.some(alphabet, 2, 3))
        return self.fresh(lambda: "".join(self.any(alphabet) for _ in range(self.number(3, 8))))

    def foreign(self) -> str:
        """A short string in a script that is not Latin."""
        low, high = self.any(
            (
                (0x4E00, 0x9FA5),
                (0x4E00, 0x9FA5),
                (0x3042, 0x3093),
                (0x30A2, 0x30F3),
                (0xAC00, 0xD7A3),
                (0x0430, 0x044F),
                (0x03B1, 0x03C9),
                (0x0627, 0x064A),
            )
        )
        return self.fresh(lambda: "".join(chr(self.number(low, high)) for _ in range(self.number(2, 6))))

    def person(self) -> str:
        first = self.word_of(FIRST_NAMES) if self.chance(0.4) else self.proper()
        return first if self.chance(0.5) else f"{first} {self.last_name()}"

    def last_name(self) -> str:
        """A listed one, that with an ending, or an invented one: a name may begin as a word does and go on."""
        if not self.chance(0.4):
            return self.proper()
        name = self.word_of(LAST_NAMES)
        return name + self.any(_ENDINGS) if self.inventive and self.chance(0.25) else name

    def turkish_person(self) -> str:
        first = self.word_of(FIRST_NAMES) if self.chance(0.35) else self.fresh(lambda: self._turkish(self.number(2, 3)))
        if self.chance(0.7):
            return first
        return f"{first} {self.last_name() if self.inventive else self.word_of(LAST_NAMES)}"

    def city(self) -> str:
        return self.word_of(CITIES) if self.chance(0.5) else self.proper()

    def place(self) -> str:
        """A city, sometimes with its state."""
        return f"{self.city()}, {self.word_of(STATES)}" if self.chance(0.25) else self.city()

    def company(self) -> str:
        ending = self.word_of(
            ("Labs", "Group", "Systems", "Ltd", "Inc", "Works", "Foods", "Energy", "Bank", "Media", "Motors")
        )
        return f"{self.proper()} {ending}" if self.chance(0.6) else self.proper()

    def product(self) -> str:
        draw = self.rng.random()
        if draw < 0.35:
            return f"{self._listed_or_not(ADJECTIVES)} {self._listed_or_not(GOODS)}"
        if draw < 0.6:
            return f"{self.proper()} {self._listed_or_not(GOODS).capitalize()}"
        series, number = self.any(("X", "Pro", "Mini", "Max", "One", "S")), self.any(("", "", "2", "3", "7", "10"))
        return f"{self.proper()} {series}{number}"

    def _listed_or_not(self, words: Sequence[str]) -> str:
        """One of a list, or an invented word in its place: a list is soon known by heart, and copying with it."""
        return self.word_of(words) if not self.inventive or self.chance(0.6) else self.invented(1, 2)

    def price(self) -> float | int:
        return self.number(2, 990) if self.chance(0.4) else self.number(100, 99999) / 100

    def date(self) -> str:
        day, month, year = self.number(1, 28), self.any(MONTHS), self.number(2019, 2031)
        return self.any(
            (
                f"{day} {month} {year}",
                f"{month} {day}, {year}",
                f"{day} {month}",
                f"{month} {day}",
                f"{year}-{MONTHS.index(month) + 1:02d}-{day:02d}",
            )
        )

    def time(self) -> str:
        hour, minute = self.number(7, 22), self.any(("00", "15", "30", "45"))
        return f"{hour}:{minute}" if self.chance(0.7) else f"{(hour - 1) % 12 + 1} {'am' if hour < 12 else 'pm'}"

    def email(self) -> str:
        user = self.any((self.invented(1, 2), f"{self.invented(1, 2)}.{self.invented(1, 2)}"))
        return f"{user}@{self.invented(1, 2)}.{self.any(('com', 'org', 'net', 'io'))}"

    def snake(self, parts: int = 2) -> str:
        """An invented snake_case identifier."""
        common = (
            "secret",
            "special",
            "custom",
            "fast",
            "my",
            "main",
            "data",
            "value",
            "core",
            "test",
            "sample",
        )
        kinds = ("function", "tool", "lookup", "service", "helper", "check", "query", "task", "index", "score", "api")
        words = [self.word_of(common) if self.chance(0.3) else self.invented(1, 2) for _ in range(parts - 1)]
        return "_".join([*words, self.word_of(kinds) if self.chance(0.5) else self.invented(1, 2)])

    def _syllables(self, count: int) -> str:
        word = "".join(self.any(_ONSETS) + self.any(_VOWELS) + self.any(_CODAS) for _ in range(count))
        return (self.any("aeiou") + word if self.chance(0.15) else word)[:12]

    def _of_pieces(self) -> str:
        """No word of a list, part of which no training sees."""
        while True:
            word = "".join(self.any(self.pieces) for _ in range(self.number(1, 3)))[:14]
            if word not in _GOODS:
                return word

    def _turkish(self, count: int) -> str:
        word = "".join(
            self.any(_TURKISH_ONSETS) + self.any(_TURKISH_VOWELS) + self.any(_TURKISH_CODAS) for _ in range(count)
        )
        return ("İ" if word[0] == "i" else word[0].upper()) + word[1:10]
