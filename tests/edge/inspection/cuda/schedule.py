"""Queued work, and the order in which an unkind device does it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(eq=False)
class Mark:
    """One recording of an event: `reached` is the device's time then, None before."""

    reached: float | None = None


@dataclass(frozen=True)
class Wait:
    """What follows in the queue has to wait for the mark."""

    mark: Mark


Work: TypeAlias = "Callable[[], None]"


@dataclass(eq=False)
class Queue:
    """What has been queued on one stream and is not done yet."""

    items: deque[Work | Mark | Wait] = field(default_factory=deque)

    @property
    def blocked(self) -> Mark | None:
        """The mark that the queue waits for."""
        while self.items and isinstance(head := self.items[0], Wait):
            if head.mark.reached is None:
                return head.mark
            self.items.popleft()
        return None


class Scheduler:
    """Does queued work in an order that streams and events allow.

    `seed % 3` is 0: only what a wait needs, when it waits; 1: everything else first; 2: at random, at any time.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._policy = seed % 3
        self.dawdles = self._policy == 2
        self._queues: list[Queue] = []
        self._time = 0.0

    def queue(self) -> Queue:
        """Return a new one."""
        self._queues.append(Queue())
        return self._queues[-1]

    def finish(self, goal: Queue | Mark) -> None:
        """Work until the queue is empty, or the mark is reached."""
        while goal.items if isinstance(goal, Queue) else goal.reached is None:
            needed = self._needed(goal)
            others = [queue for queue in self._ready() if queue is not needed]
            if self._policy == 0 or not others:
                self._step(needed)
            elif self._policy == 1:
                self._step(others[-1])
            else:
                self._step(self.random.choice([needed, *others]))

    def finish_all(self) -> None:
        """Work until nothing is queued."""
        for queue in self._queues:
            self.finish(queue)

    def dawdle(self) -> None:
        """Do something, or nothing, unasked."""
        for _ in range(self.random.randrange(3)):
            if ready := self._ready():
                self._step(self.random.choice(ready))

    def _ready(self) -> list[Queue]:
        return [queue for queue in self._queues if queue.blocked is None and queue.items]

    def _needed(self, goal: Queue | Mark) -> Queue:
        """The queue whose next item brings the goal nearer."""
        while isinstance(goal, Mark) or goal.blocked is not None:
            mark = goal if isinstance(goal, Mark) else goal.blocked
            # Marks are queued before anything can wait for them, so that there is always one.
            goal = next(queue for queue in self._queues if mark in queue.items)
            if goal.blocked is None:
                break
        return goal

    def _step(self, queue: Queue) -> None:
        if not queue.items:
            return
        item = queue.items.popleft()
        self._time += 0.01
        if isinstance(item, Mark):
            item.reached = self._time
        elif not isinstance(item, Wait):
            item()
