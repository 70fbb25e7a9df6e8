"""The formats of JSON Schema: the language that a grammar is given, and the check that a finished value must pass.

Rules. Each format has one pattern, after the grammar of its RFC, never wider than the format unless ``refuses`` says
so: what a grammar generates from it is valid. Where the pattern is narrower (a quoted local part, a leap second, an
IP literal), ``admits`` accepts the rest in validation. A format that is not listed asserts nothing, as JSON Schema
has it.

Must not know: schemas, grammars.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from radixbackend.structured.language import Language, strip_anchors
from radixbackend.structured.pattern import PatternError, parse


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    Attributes:
        pattern: ECMA-262, matches whole texts.
        max_length: bound on the length of the text, where the format has one.
        admits: accepts texts outside of the pattern that are valid all the same.
        refuses: rejects texts that fit the pattern but not the format.
    """

    pattern: str
    max_length: int | None = None
    admits: Callable[[str], bool] | None = None
    refuses: Callable[[str], bool] | None = None


# RFC 3339

_DATE = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_OFFSET = r"(?:[Zz]|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?{_OFFSET}"
_DURATION_TIME = r"T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DURATION_DATE = r"(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
_LEAP_SECOND = re.compile(
    rf"(?:({_DATE})[Tt])?([01][0-9]|2[0-3]):([0-5][0-9]):60(?:\.[0-9]+)?(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))",
    re.ASCII,
)


def _is_leap_second(text: str) -> bool:
    """RFC 3339, 5.7: second 60 exists only at 23:59 UTC."""
    match = _LEAP_SECOND.fullmatch(text)
    if match is None:
        return False
    _, hour, minute, sign, offset_hour, offset_minute = match.groups()
    offset = (int(offset_hour) * 60 + int(offset_minute)) * (-1 if sign == "+" else 1) if sign else 0
    return (int(hour) * 60 + int(minute) + offset) % 1440 == 1439


def _is_dated(text: str) -> bool:
    return "T" in text.upper()


# RFC 1123, RFC 5890, RFC 5321

_LABEL = r"(?:[A-Za-z0-9]{1,63}|[A-Za-z0-9](?:-?[A-Za-z0-9]){0,31})"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL})*"
_IPV4 = r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_H16 = r"[0-9A-Fa-f]{1,4}"
_LS32 = rf"(?:{_H16}:{_H16}|{_IPV4})"
_IPV6 = "|".join(
    [
        rf"(?:{_H16}:){{6}}{_LS32}",
        rf"::(?:{_H16}:){{5}}{_LS32}",
        rf"(?:{_H16})?::(?:{_H16}:){{4}}{_LS32}",
        *(rf"(?:(?:{_H16}:){{0,{n}}}{_H16})?::(?:{_H16}:){{{3 - n}}}{_LS32}" for n in (1, 2, 3)),
        rf"(?:(?:{_H16}:){{0,4}}{_H16})?::{_LS32}",
        rf"(?:(?:{_H16}:){{0,5}}{_H16})?::{_H16}",
        rf"(?:(?:{_H16}:){{0,6}}{_H16})?::",
    ]
)
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]"
_EMAIL = rf"{_ATEXT}+(?:\.{_ATEXT}+)*@{_HOSTNAME}"
_UTF8_ATEXT = _ATEXT[:-1] + r"\u{80}-\u{10ffff}]"
_UTF8_LABEL = r"[A-Za-z0-9\u00a1-\ud7ff\uf900-\ufffd\u{10000}-\u{10ffff}]"
_UTF8_HOSTNAME = rf"{_UTF8_LABEL}(?:[.\-]?{_UTF8_LABEL})*"
_WIDE_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_WIDE_EMAIL = re.compile(
    r"""("(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*"|[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+)"""
    r"""@(\[(?:IPv6:)?([0-9A-Fa-f:.]+)\]|[^\[@]+)"""
)


def _is_hostname(text: str) -> bool:
    labels = text.split(".")
    return len(text) <= 253 and all(_WIDE_LABEL.fullmatch(label) and _is_label(label) for label in labels)


def _is_label(label: str) -> bool:
    """Whether hyphens in the third and fourth place announce a proper A-label (RFC 5891, 4.2.3.1)."""
    if label[2:4] != "--":
        return True
    import idna

    try:
        return label[:2].lower() == "xn" and bool(idna.ulabel(label.encode("ascii")))
    except idna.IDNAError:
        return False


def _is_no_idn_hostname(text: str) -> bool:
    import idna

    labels = re.split("[.\u3002\uff0e\uff61]", text)
    right_to_left = any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in text)
    try:
        for label in labels:
            if right_to_left:
                idna.check_bidi(label, check_ltr=True)
            if not label.isascii():
                idna.alabel(label)
            elif not _is_hostname(label):
                return True
    except (idna.IDNAError, UnicodeError):
        return True
    return False


def _is_quoted_email(text: str) -> bool:
    return text.isascii() and _is_quoted_idn_email(text)


def _is_quoted_idn_email(text: str) -> bool:
    match = _WIDE_EMAIL.fullmatch(text)
    if match is None:
        return False
    local, domain, address = match.groups()
    if not local.startswith('"') and (local.startswith(".") or local.endswith(".") or ".." in local):
        return False
    if address is None:
        return _is_hostname(domain)
    return re.fullmatch(_IPV6 if domain.startswith("[IPv6:") else _IPV4, address, re.ASCII) is not None


# RFC 3986, RFC 3987, RFC 6570

_PCT = r"%[0-9A-Fa-f]{2}"
_UCS = r"\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef" + "".join(rf"\u{{{p:x}0000}}-\u{{{p:x}fffd}}" for p in range(1, 15))
_PRIVATE = r"\ue000-\uf8ff\u{f0000}-\u{ffffd}\u{100000}-\u{10fffd}"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*"
_SAFE = r"A-Za-z0-9\-._~!$&'()*+,;="


def _references(extra: str, private: str, host: str) -> tuple[str, str]:
    """The patterns of absolute and of relative references, ``extra`` characters being allowed besides ASCII."""
    safe = _SAFE + extra
    user, reg = rf"(?:(?:[{safe}:]|{_PCT})*@)?", rf"(?:[{safe}]|{_PCT})*"
    segment, first = rf"(?:[{safe}:@]|{_PCT})", rf"(?:[{safe}@]|{_PCT})"
    authority = rf"//{user}(?:{host}{reg})(?::[0-9]*)?(?:/{segment}*)*"
    absolute = rf"/(?:{segment}+(?:/{segment}*)*)?"
    rootless, unschemed = rf"{segment}+(?:/{segment}*)*", rf"{first}+(?:/{segment}*)*"
    tail = rf"(?:\?(?:[{safe}:@/?{private}]|{_PCT})*)?(?:#(?:[{safe}:@/?]|{_PCT})*)?"
    return rf"{_SCHEME}:(?:{authority}|{absolute}|{rootless}|){tail}", rf"(?:{authority}|{absolute}|{unschemed}|){tail}"


_IP_LITERAL = rf"\[(?:{_IPV6}|[vV][0-9A-Fa-f]+\.[{_SAFE}:]+)\]|"
_URI, _RELATIVE = _references("", "", "")
_IRI, _RELATIVE_IRI = _references(_UCS, _PRIVATE, "")
_WIDE_UCS = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U000efffd"
_WIDE_PRIVATE = "\ue000-\uf8ff\U000f0000-\U0010fffd"
_LITERAL_URI, _LITERAL_RELATIVE = _references("", "", _IP_LITERAL)
_LITERAL_IRI, _LITERAL_RELATIVE_IRI = _references(_WIDE_UCS, _WIDE_PRIVATE, _IP_LITERAL)

_VARNAME = rf"(?:[A-Za-z0-9_]|{_PCT})(?:\.?(?:[A-Za-z0-9_]|{_PCT}))*"
_VARSPEC = rf"{_VARNAME}(?:\*|:[1-9][0-9]{{0,3}})?"
_TEMPLATE = rf"(?:[!#$&-;=?-\[\]_a-z~{_UCS}{_PRIVATE}]|{_PCT}|\{{[+#./;?&=,!@|]?{_VARSPEC}(?:,{_VARSPEC})*\}})*"

# RFC 6901

_POINTER = r"(?:/(?:[^~/]|~[01])*)*"


def _is_no_regex(text: str) -> bool:
    try:
        parse(text)
    except PatternError:
        return True
    return "(?P<" in text  # Python's spelling of a named group, which `parse` tolerates


def _with_ip_literal(*patterns: str) -> Callable[[str], bool]:
    return lambda text: "[" in text and any(re.fullmatch(pattern, text) for pattern in patterns)


FORMATS: dict[str, Format] = {
    "date": Format(_DATE),
    "time": Format(_TIME, admits=lambda text: not _is_dated(text) and _is_leap_second(text)),
    "date-time": Format(rf"{_DATE}[Tt]{_TIME}", admits=lambda text: _is_dated(text) and _is_leap_second(text)),
    "duration": Format(rf"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|[0-9]+W)"),
    "email": Format(_EMAIL, 254, admits=_is_quoted_email),
    "idn-email": Format(rf"{_UTF8_ATEXT}+(?:\.{_UTF8_ATEXT}+)*@{_UTF8_HOSTNAME}", admits=_is_quoted_idn_email),
    "hostname": Format(_HOSTNAME, 253, admits=_is_hostname),
    "idn-hostname": Format(_UTF8_HOSTNAME, 253, admits=_is_hostname, refuses=_is_no_idn_hostname),
    "ipv4": Format(_IPV4),
    "ipv6": Format(_IPV6),
    "uuid": Format(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"),
    "uri": Format(_URI, admits=_with_ip_literal(_LITERAL_URI)),
    "uri-reference": Format(rf"{_URI}|{_RELATIVE}", admits=_with_ip_literal(_LITERAL_URI, _LITERAL_RELATIVE)),
    "iri": Format(_IRI, admits=_with_ip_literal(_LITERAL_IRI)),
    "iri-reference": Format(rf"{_IRI}|{_RELATIVE_IRI}", admits=_with_ip_literal(_LITERAL_IRI, _LITERAL_RELATIVE_IRI)),
    "uri-template": Format(_TEMPLATE),
    "json-pointer": Format(_POINTER),
    "relative-json-pointer": Format(rf"(?:0|[1-9][0-9]*)(?:[+\-](?:0|[1-9][0-9]*))?(?:#|{_POINTER})"),
    "regex": Format(r"[\s\S]*", refuses=_is_no_regex),
}


class FormatBook:
    """The formats, each parsed and compiled when first asked for; safe to share between threads."""

    def __init__(self) -> None:
        self._languages: dict[str, Language] = {}

    def language(self, name: str) -> Language:
        """The texts of a listed format's pattern."""
        if name not in self._languages:
            self._languages[name] = Language(strip_anchors(parse(FORMATS[name].pattern)))
        return self._languages[name]

    def lengths(self, name: str) -> tuple[int, int | None]:
        """Of the shortest and of the longest text of a listed format (None: no bound that is known)."""
        known = FORMATS[name]
        least, most = self.language(name).lengths
        if known.admits is not None:  # some longer texts, none that is shorter than all of the pattern's
            return least, None
        return least, most if most is not None and known.max_length is None else known.max_length

    def accepts(self, name: str, text: str) -> bool:
        """Whether ``text`` has the format; true for every text where the format is unknown."""
        known = FORMATS.get(name)
        if known is None or (known.admits is not None and known.admits(text)):
            return True
        if known.max_length is not None and len(text) > known.max_length:
            return False
        return self.language(name).has(text) and not (known.refuses is not None and known.refuses(text))
