"""Which names of a notebook a cell makes, and which it needs."""

import re
import symtable


def names(cell) -> tuple[set[str], set[str]]:
    """The names that a cell gives a meaning in the notebook, and those that it finds there."""
    python = re.sub(r"^(\s*)[%!].*", r"\1pass", cell.source, flags=re.MULTILINE)
    top = symtable.symtable(python, "cell", "exec")
    sets = {name.get_name() for name in top.get_symbols() if name.is_assigned() or name.is_imported()}
    scopes, found = [top], set()
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        found |= {name.get_name() for name in scope.get_symbols() if scope is top or name.is_global()}
    return sets, found - sets
