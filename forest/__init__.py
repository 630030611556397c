"""The forest: River -> Tree -> Leaf on the Wind -> Nim -> Humus -> Decomposer -> Soil.

An application on the public NATS client API, so that it runs on any NATS server with JetStream. This page exports what
own trees and nims, and whoever runs a forest, need; `forest.app` is the way in, `forest.webhook` the HTTP source.
"""

from forest.app import Forest
from forest.errors import BrokenPlugin, ForestError, KeyMissing, Poison, Refused, RevisionConflict, Unavailable
from forest.ground import Ground
from forest.leaf import Leaf
from forest.metrics import ForestMetrics
from forest.nim import Nim
from forest.options import ForestOptions
from forest.river import RiverItem
from forest.tree import Tree

__all__ = [
    "BrokenPlugin",
    "Forest",
    "ForestError",
    "ForestMetrics",
    "ForestOptions",
    "Ground",
    "KeyMissing",
    "Leaf",
    "Nim",
    "Poison",
    "Refused",
    "RevisionConflict",
    "RiverItem",
    "Tree",
    "Unavailable",
]
