"""Every test runs with jaxtyping's run-time shape checks on the whole package; an int may stand for a float."""

from jaxtyping import install_import_hook

install_import_hook("ufm", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
