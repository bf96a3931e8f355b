"""Names that a docstring describes together, `H, A, C`, stay together in the reference."""

from __future__ import annotations

import itertools
from typing import Any

import griffe

KINDS = (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes)


def grouped(items: list[Any], owner: griffe.Object) -> list[Any]:
    """Neighbours of one description and annotation as one item with all their names.

    Where the signature has others for some of them, as griffe gives every name those of the first, it
    alone tells annotation and default.
    """

    def shared(item: Any) -> tuple[str, str]:
        return item.description, str(item.annotation)

    parameters = getattr(owner, "parameters", ())
    groups = []
    for _, neighbours in itertools.groupby(items, shared):
        first, *others = group = list(neighbours)
        known = [parameters[item.name] for item in group if item.name in parameters]
        if others and len({str(parameter.annotation) for parameter in known}) > 1:
            first.annotation = None
        if others and len({str(parameter.default) for parameter in known}) > 1:
            first.value = None
        first.name = ", ".join(item.name for item in group)
        groups.append(first)
    return groups


class GroupedNames(griffe.Extension):
    """Regroups parameters and attributes, which griffe lists one by one."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Do so in all docstrings of a package."""
        pending: list[griffe.Object] = [pkg]
        while pending:
            owner = pending.pop()
            if owner.docstring:
                for section in owner.docstring.parsed:
                    if section.kind in KINDS:
                        section.value = grouped(section.value, owner)
            pending += [child for child in owner.members.values() if not child.is_alias]
