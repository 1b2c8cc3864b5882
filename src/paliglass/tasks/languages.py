"""Which codes are languages': a model answers to nonsense too, and nobody would notice."""

from __future__ import annotations

import re

__all__ = ["is_language"]

# ISO 639-1, all of it.
_TWO_LETTERS = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da
    de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz
    ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln
    lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi
    pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti
    tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    """.split()
)
# Of ISO 639-2 and 639-3 those that captions in many languages have (arXiv 2205.12522), with other
# large ones; and the withdrawn codes that WebLI (arXiv 2209.06794) still uses.
_OTHERS = frozenset(
    """
    ast bho ceb ckb cmn dsb fil fur gsw haw hmn hsb ilo kab lij lus mai mni mul nah nan nds new pam
    prs pap quc quz sah sat scn sco sdh shn swc szl tet tpi tzm vec war wuu yue zgh
    in iw ji jw mo sh
    """.split()
)


def is_language(code: str) -> bool:
    """Whether `en`, `fil` or `zh-Hans` is a language's code: its first part, before the `-`."""
    match = re.fullmatch(r"([a-z]{2,3})(-[A-Za-z0-9]{2,8})*", code)
    return match is not None and match[1] in _TWO_LETTERS | _OTHERS
