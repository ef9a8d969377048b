"""What a gang's leader writes to its log: a JSON object a line, and one line for each item.

Leaders write to standard error, which Ray keeps in the `worker-*.err` files of their node's
session. Lines hold item ids and never a prompt, nor an error's text, which may quote one: both
are in the receipt that the id leads to.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cluster.results.manifest import stage_seconds

log = logging.getLogger(__name__)

# What a line tells of a row, besides its stages.
FIELDS = ("item_id", "shard", "status", "attempts", "nfe", "world_size", "bytes")


class JsonLines(logging.Formatter):
    """One JSON object a record: time (UTC), level, logger, message and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def to_stderr() -> None:
    """Lets this process's loggers of `cluster` write JSON lines, from INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("cluster")
    ours.handlers = [handler]
    ours.setLevel(logging.INFO)
    ours.propagate = False


def item(row: Mapping[str, Any]) -> None:
    """Writes one line of an item that was committed, of its row as its receipt holds it."""
    fields = {name: row[name] for name in FIELDS if row[name] is not None}
    taken = {f"{stage}_s": round(value, 3) for stage, value in stage_seconds(row).items()}
    log.info("item committed", extra={"fields": {**fields, **taken}})
