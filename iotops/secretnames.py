"""Names that say that their value is a secret: `WIFI_PASS`, `adminPassword`, `network_key`.

Of a variable the whole name is known, and one that is taken too many costs nothing. In a text a
name is to be found first, and ordinary words hold some of the same letters (`compass`, `keyboard`).
Not here: the forms that a secret itself has (`flowdoc.py`), and what is done with it.
"""

from __future__ import annotations

import re

_ANYWHERE = (
    *("passw", "passphrase", "pwd", "psk", "token", "secret", "credential"),
    *("authorization", "httpHeaderValue"),
)
"""Letters that say it wherever they stand in a name."""
_WORDS = ("pass", "pw(?!m)", "cred", "key")
"""Those that ordinary words begin or end with as well."""

VARIABLE = "|".join((*_ANYWHERE, *_WORDS))
"""What a variable's name has in it, as a pattern to be searched for in any case of letters."""
of_variable = re.compile(VARIABLE, re.IGNORECASE).search

_ENDS = r"(?:(?![^\W\d_])|(?-i:(?<=[a-z])(?=[A-Z])))"
"""The end of one word of a name: `pass_2`, `passFor`, not `passive`."""
_KEY = (
    r"(?:(?:(?<!public)(?<!pub)(?<!authorized)(?<=\w)[_-]|(?:api|private|access|encryption|signing"
    r"|client)|(?-i:(?<!public)(?<!pub)(?<=[a-z\d])(?=K)|\b(?=KEY)))keys?" + _ENDS + ")"
)
"""Some key: not `key:` alone, which is the name of anything, and none that everybody may know."""
IN_TEXT = (
    rf"(?:{'|'.join(_ANYWHERE)}|(?<!com)(?<!by)(?<!sur)pass{_ENDS}|(?<![a-z])pw{_ENDS}"
    rf"|(?:(?<![a-z])|(?-i:(?<=[a-z])(?=C)))creds?{_ENDS}|{_KEY})"
    r"(?!\w*[_-](?:file|env|path|url)\b)[\w-]*"
)
"""Such a name from the telling word to its end, as a pattern for any case of letters; not
`password_file`, `token_env` and their like, which say where it is."""
