"""Storage commitment: which SR slices the archive has promised to keep.

Source: DICOM PS3.4, J (push model), PS3.3, C.14 (failure reasons), PS3.7, C (status codes).
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from typing import Any

from .frame import CLASSIC, require_pydicom

COMMITMENT = "1.2.840.10008.1.20.1"  # storage commitment push model, and below it its one instance
COMMITMENT_INSTANCE = f"{COMMITMENT}.1"
REQUEST, ALL_COMMITTED = 1, 1  # N-ACTION type, N-EVENT-REPORT type
FOR_A_WHILE = 0x0110, 0x0213  # failure reasons: processing failure, lack of resources
SUCCESS = 0x0000
NOT_OFFERED = 0x0118, 0x0123, 0x0211  # no such class, action, operation: from some that accept the context


class Commitments:
    """The archive's answers to storage commitment requests, by SOP instance.

    They may come late, in parts, in any order, on any association. Those to unknown requests do not count.
    """

    def __init__(self) -> None:
        self._asked: dict[str, set[str]] = {}  # instances by transaction
        self._answers: dict[str, int] = {}  # failure reason, or 0, by instance
        self._heard: set[str] = set()  # instances with news
        self._change = threading.Condition()

    def request(self, link: Any, instances: set[str]) -> int | None:
        """Ask for commitment of these instances; the status of the answer, None if there is none."""
        dataset = require_pydicom().Dataset
        transaction, request = f"2.25.{uuid.uuid4().int}", dataset()
        request.TransactionUID, request.ReferencedSOPSequence = transaction, []
        for name in sorted(instances):
            reference = dataset()
            reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CLASSIC, name
            request.ReferencedSOPSequence.append(reference)
        with self._change:  # a report may come before the answer
            self._asked[transaction] = instances
        status, _ = link.send_n_action(request, REQUEST, COMMITMENT, COMMITMENT_INSTANCE)
        return status.Status if "Status" in status else None

    def report(self, event: Any) -> tuple[int, None]:
        """Take an N-EVENT-REPORT, on whichever association it comes."""
        with contextlib.suppress(Exception), self._change:  # an unreadable report is ignored
            said = event.event_information
            asked = self._asked[str(said.TransactionUID)]
            committed, failed = (
                {str(item.ReferencedSOPInstanceUID): item.get("FailureReason") for item in sequence or ()}
                for sequence in (said.get("ReferencedSOPSequence"), said.get("FailedSOPSequence"))
            )
            if event.event_type == ALL_COMMITTED and not committed and not failed:
                committed = dict.fromkeys(asked)
            answers = dict.fromkeys(committed, 0) | {
                name: why or FOR_A_WHILE[0] for name, why in failed.items()
            }
            self._answers |= {name: answers[name] for name in answers.keys() & asked}
            self._heard |= asked
            self._change.notify_all()
        return SUCCESS, None

    def heard(self) -> set[str]:
        """The instances of transactions on which reports came since the last call."""
        with self._change:
            heard, self._heard = self._heard, set()
        return heard

    def wait(self, instances: set[str], seconds: float) -> None:
        """Until a report comes on any of these instances, at most so long."""
        with self._change:
            self._change.wait_for(lambda: instances & self._heard, seconds)

    def take(self, instances: set[str]) -> tuple[set[str], dict[str, int]]:
        """Which of these instances are not committed; which of them failed, why, as is said once."""
        with self._change:
            lacking = {name for name in instances if self._answers.get(name) != 0}
            return lacking, {name: self._answers.pop(name) for name in lacking & self._answers.keys()}

    def forget(self, instances: set[str]) -> None:
        """Expect no more reports on these instances."""
        with self._change:
            self._asked = {name: asked for name, asked in self._asked.items() if not asked & instances}
            self._answers = {name: why for name, why in self._answers.items() if name not in instances}
