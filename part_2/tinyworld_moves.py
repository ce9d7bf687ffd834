"""Lesson 2.2 - moves in tinyworld: people walk about, take things along, put them down, and a program knows what is where.

    events  ->  state:   place of each person;   of each thing its holder, or its place and perhaps its container

A text in which a thing moves with its holder cannot be continued from the last words alone: the smallest form of the tasks
of Weston et al. (2015, "bAbI", tasks 1 to 3).
"""

from typing import NamedTuple

from part_2.tinyworld import CONTAINERS, NAMES, PLACES, THINGS

VERBS = {"go": ("went to", "walked to", "ran to"), "take": ("took", "got"), "leave": ("left", "dropped"), "put": ("put",),
         "give": ("gave",)}


class Event(NamedTuple):
    """One move. verb: of VERBS; name: who; what: the place of "go", else the thing; to: a container, or who is given it."""

    verb: str
    name: str
    what: str
    to: str | None = None

    def sentence(self, words):
        """The sentence that tells it with these words, one of VERBS[verb]."""
        if self.verb == "go":
            return f"{self.name} {words} the {self.what}."
        if self.verb == "leave":
            return f"{self.name} {words} the {self.what} there."
        tail = {"take": "", "put": f" in the {self.to}", "give": f" to {self.to}"}[self.verb]
        return f"{self.name} {words} the {self.what}{tail}."


class World:
    """Who and what is where. An event is refused (ValueError) when its person cannot do it."""

    def __init__(self):
        self.place = {}  # of a person
        self.holder = {}  # of a thing that is carried
        self.spot = {}  # of a thing that lies somewhere: (place, container or None)

    def do(self, event):
        """Let it happen."""
        verb, name, what, to = event
        if verb == "go":
            if self.place.get(name) == what:
                raise ValueError(f"{name} is in the {what} already")
            self.place[name] = what
            return
        here = self.place.get(name)
        if here is None:
            raise ValueError(f"nobody knows where {name} is")
        if verb == "take":
            if what in self.holder or (what in self.spot and self.spot[what][0] != here):
                raise ValueError(f"{name} cannot take the {what}: it is not lying in the {here}")
            self.spot.pop(what, None)
            self.holder[what] = name
            return
        if self.holder.get(what) != name:
            raise ValueError(f"{name} does not have the {what}")
        if verb == "give":
            if to == name or self.place.get(to) != here:
                raise ValueError(f"{to} is not with {name} in the {here}")
            self.holder[what] = to
        else:
            del self.holder[what]
            self.spot[what] = here, to

    def place_of(self, what):
        """The place of a person or thing, the holder's for one that is carried. KeyError for one that nobody has seen."""
        if what in self.holder:
            return self.place[self.holder[what]]
        return self.spot[what][0] if what in self.spot else self.place[what]

    def known(self):
        """The people and things whose place is known, in the order in which they came up."""
        return [*self.place, *self.holder, *self.spot]

    def choices(self, people, things, places, containers):
        """All events that are possible now, by verb, for these people, things, places and containers."""
        known = [name for name in people if name in self.place]
        lying = [thing for thing in things if thing not in self.holder]
        return {
            "go": [Event("go", name, place) for name in people for place in places if self.place.get(name) != place],
            "take": [Event("take", name, thing) for name in known for thing in lying
                     if thing not in self.spot or self.spot[thing][0] == self.place[name]],
            "leave": [Event("leave", name, thing) for thing, name in self.holder.items()],
            "put": [Event("put", name, thing, container) for thing, name in self.holder.items() for container in containers],
            "give": [Event("give", name, thing, other) for thing, name in self.holder.items() for other in known
                     if other != name and self.place[other] == self.place[name]],
        }


def moves(rng, n_events, n_people=2, n_things=2):
    """A chain of possible events, drawn by `rng` (random.Random): a list of Events, the first of which is a "go"."""
    people, things = rng.sample(NAMES, n_people), rng.sample(THINGS, n_things)
    places, containers = rng.sample(PLACES, 4), rng.sample(CONTAINERS, 2)
    world, events = World(), []
    while len(events) < n_events:
        possible = {verb: found for verb, found in world.choices(people, things, places, containers).items() if found}
        verbs = [verb for verb in possible for _ in range(2 if verb in ("go", "take") else 1)]
        events.append(rng.choice(possible[rng.choice(verbs)]))
        world.do(events[-1])
    return events


def tell(events, rng):
    """The events as one sentence each, joined by spaces."""
    return " ".join(event.sentence(rng.choice(VERBS[event.verb])) for event in events)
