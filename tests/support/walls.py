"""A contract of import-linter: a job uses another job only through its `workflow`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from importlinter import Contract, ContractCheck, fields, output


class ThroughWorkflow(Contract):
    """Rooms of a package may use each other through one module alone.

    Fields:
        package: the package whose subpackages are the rooms.
        door: the module of a room that other rooms may import.
        shared: the room that all others may use whole, and that uses none of them.
    """

    type_name = "through_workflow"
    package = fields.StringField()
    door = fields.StringField()
    shared = fields.StringField()

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        rooms = sorted(
            child for child in graph.find_children(self.package) if graph.find_children(child)
        )
        wrong = [
            f"{importer} -> {imported}"
            for room in rooms
            for importer, imported in self._imports(graph, room)
            if not self._allowed(room, imported)
        ]
        return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["wrong"]:
            output.print_error(f"{line}: a job uses another only through its {self.door}")

    def _imports(self, graph: Any, room: str) -> Iterator[tuple[str, str]]:
        """What modules of the room import from other rooms of the package, sorted."""
        for importer in sorted({room, *graph.find_descendants(room)}):
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                elsewhere = imported != room and not imported.startswith(f"{room}.")
                if imported.startswith(f"{self.package}.") and elsewhere:
                    yield importer, imported

    def _allowed(self, room: str, imported: str) -> bool:
        _, other, *inside = imported.split(".")
        if room == f"{self.package}.{self.shared}":
            return False
        return other == self.shared or inside == [self.door]
