"""The engine: answers many requests at once with one model."""

from .engine import Engine
from .request import EngineRequest, PromptScores, QueueFull, Ticket

__all__ = ["Engine", "EngineRequest", "PromptScores", "QueueFull", "Ticket"]
